"""The smallest network that has every kind of state: for tests that start many processes."""

from imagen_jax.config import (
    CascadeConfig,
    DataConfig,
    SampleConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
    to_config_dict,
)
from imagen_jax.models import EfficientUNetConfig


def get_config():
    """The config as an `ml_collections.ConfigDict`."""
    base = StageConfig(
        resolution=8,
        model=EfficientUNetConfig(
            channels=(8,),
            num_res_blocks=(1,),
            strides=(2,),
            self_attention=(False,),
            text_attention=("cross",),
            head_dim=8,
        ),
        train=TrainConfig(
            batch_size=4,
            num_steps=24,
            learning_rate=1e-3,
            warmup_steps=5,
            # The rate then does not depend on the number of steps: a run can be lengthened.
            lr_decay="constant",
            log_every=4,
            save_every=6,
            preview_every=1000,
            validate_every=0,
            validation_images=6,
        ),
        sample=SampleConfig(num_steps=2),
    )
    return to_config_dict(
        CascadeConfig(
            name="smallest",
            text=TextConfig(max_length=8),
            data=DataConfig(source="shapes"),
            stages={"base": base},
        )
    )
