"""A base stage of `shapes` that learns what it can from its text within minutes of one core.

    python -m benchmarks.text_strength --config=configs/text_strength.py

trains it with text encoders of three strengths and prints what each is worth, see docs/text.md.
"""

from imagen_jax.config import (
    CascadeConfig,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    SampleConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
    to_config_dict,
)


def get_config():
    """The config as an `ml_collections.ConfigDict`."""
    base = StageConfig(
        resolution=32,
        # The network of configs/shapes32.py at half the width and without its last level, the
        # pixels folded into 2x2 patches.
        model=ModelConfig(
            channels=(32, 64),
            num_res_blocks=(2, 2),
            strides=(1, 2),
            self_attention=(False, True),
            text_attention=("none", "joint"),
            head_dim=32,
            embed_dim=128,
            patch_size=2,
            input_skip=True,
        ),
        # Shifted by -2.8: text is learned where noise hides the picture (docs/recipes.md).
        diffusion=DiffusionConfig(prediction="x", shift_resolution=8),
        train=TrainConfig(
            batch_size=16,
            num_steps=600,
            learning_rate=1e-3,
            optimizer="muon",
            muon_learning_rate=0.01,
            warmup_steps=100,
            # A run can be lengthened, then.
            lr_decay="constant",
            adam_b2=0.99,
            ema_max=0.99,
            log_every=50,
            preview_every=10_000,
            save_every=200,
            keep_checkpoints=1,
            validate_every=200,
            validation_images=512,
        ),
        sample=SampleConfig(num_steps=16, guidance_weight=2.0),
    )
    return to_config_dict(
        CascadeConfig(
            name="text_strength",
            text=TextConfig(max_length=32),
            data=DataConfig(source="shapes"),
            stages={"base": base},
        )
    )
