"""A whole cascade in seconds on a CPU, for tests: 8 px, then 16 px, of the built-in shapes.

    python train.py --config=configs/tiny.py --workdir=runs/tiny

Hardware: any CPU. Time: seconds, most of them compilation. Result: noise; it is for tests.
"""

from imagen_jax.config import (
    CascadeConfig,
    DataConfig,
    SampleConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
    to_config_dict,
)
from imagen_jax.models import EfficientUNetConfig, UNetConfig


def get_config():
    """The config as an `ml_collections.ConfigDict`."""
    train = TrainConfig(
        batch_size=8,
        num_steps=20,
        learning_rate=1e-3,
        warmup_steps=5,
        log_every=5,
        preview_every=10,
        save_every=10,
        validate_every=10,
        validation_images=12,
    )
    sample = SampleConfig(num_steps=4)
    base = StageConfig(
        resolution=8,
        model=UNetConfig(
            channels=(16, 32),
            num_res_blocks=(1, 1),
            self_attention=(False, True),
            text_attention=("none", "joint"),
            head_dim=16,
        ),
        train=train,
        sample=sample,
    )
    sr16 = StageConfig(
        resolution=16,
        low_resolution=8,
        model=EfficientUNetConfig(
            channels=(16,),
            num_res_blocks=(1,),
            strides=(2,),
            self_attention=(False,),
            text_attention=("cross",),
            head_dim=16,
            attention_expansion=2,
        ),
        train=train,
        sample=sample,
    )
    return to_config_dict(
        CascadeConfig(
            name="tiny",
            text=TextConfig(max_length=24),
            data=DataConfig(source="shapes"),
            stages={"base": base, "sr16": sr16},
        )
    )
