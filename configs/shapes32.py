"""Drawn scenes of coloured shapes: 32 px, then 64 px. The first weights that shipped were of this.

    python train.py --config=configs/shapes32.py --workdir=runs/shapes32
    python sample.py --workdir=runs/shapes32 --prompts="a red circle"

Much in docs/recipes.md and docs/benchmarks.md was measured with it; `shapes.py` learns more in
equal time. The settings are for two CPU cores.
"""

import dataclasses

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
    train = TrainConfig(
        batch_size=32,
        num_steps=100_000,
        learning_rate=1e-3,
        warmup_steps=500,
        adam_b2=0.99,
        ema_max=0.999,
        log_every=50,
        preview_every=2000,
        save_every=2000,
    )
    base = StageConfig(
        resolution=32,
        # Differs from Imagen: the base is an Efficient U-Net too. Down-sampling first leaves 16x16
        # positions at most, which two cores can train.
        model=ModelConfig(
            channels=(64, 128, 128),
            num_res_blocks=(2, 2, 2),
            strides=(2, 2, 2),
            self_attention=(False, True, True),
            text_attention=("none", "joint", "joint"),
            head_dim=32,
            embed_dim=128,
        ),
        train=train,
        # Differs from Imagen: dynamic thresholding greys flat pictures (docs/evaluation.md).
        sample=SampleConfig(num_steps=32, guidance_weight=2.0, threshold="static"),
    )
    # The base has placed and coloured everything: this stage sharpens, from crops and without text
    # or attention. docs/recipes.md has what each choice is worth.
    sr64 = StageConfig(
        resolution=64,
        low_resolution=32,
        model=ModelConfig(
            channels=(48, 96),
            num_res_blocks=(2, 2),
            strides=(1, 2),
            self_attention=(False, False),
            text_attention=("none", "none"),
            head_dim=32,
            embed_dim=96,
            patch_size=2,
            input_skip=True,
        ),
        diffusion=DiffusionConfig(prediction="x", loss_weighting="min_snr", min_snr_power=0.5),
        train=dataclasses.replace(
            train,
            num_steps=1600,
            optimizer="muon",
            muon_learning_rate=0.015,
            warmup_steps=100,
            ema_max=0.998,
            crop_size=32,
            preview_every=800,
            save_every=400,
        ),
        # Differs from Imagen (0.1 to 0.3): noise costs more outlines than it hides of the base.
        sample=SampleConfig(num_steps=16, guidance_weight=1.0, aug_level=0.0, threshold="static"),
    )
    return to_config_dict(
        CascadeConfig(
            name="shapes32",
            text=TextConfig(max_length=32),
            data=DataConfig(source="shapes"),
            stages={"base": base, "sr64": sr64},
        )
    )
