"""Emoji artwork with its names, from the Noto Color Emoji font: 32 px, then 64 px. Weights ship.

    python sample.py --config=configs/emoji.py --prompts="red heart"
    apt-get install fonts-noto-color-emoji
    python train.py --config=configs/emoji.py --workdir=runs/emoji

Hardware: two CPU cores, a stage on each. Time: 72 minutes of one core made the shipped weights.
Result: four of five names that training showed can be recognised, others hardly; the model card is
imagen_jax/weights/emoji/README.md.
"""

import dataclasses

from imagen_jax.config import (
    CascadeConfig,
    DataConfig,
    DiffusionConfig,
    SampleConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
    to_config_dict,
)
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.losses import MinSNR
from imagen_jax.diffusion.schedules import NormalLevels
from imagen_jax.diffusion.thresholding import StaticThreshold
from imagen_jax.models import EfficientUNetConfig
from imagen_jax.optimizers import Muon


def get_config():
    """The config as an `ml_collections.ConfigDict`."""
    # docs/decisions.md has what each choice is worth.
    diffusion = DiffusionConfig(prediction="x", loss_weighting=MinSNR(power=0.5))
    train = TrainConfig(
        batch_size=32,
        num_steps=3600,
        optimizer=Muon(learning_rate=0.015, adam_b2=0.99),
        learning_rate=1e-3,
        warmup_steps=100,
        ema_max=0.998,
        log_every=50,
        preview_every=1000,
        save_every=500,
    )
    base = StageConfig(
        resolution=32,
        # Differs from Imagen: the base is an Efficient U-Net too. Its blocks run at 16x16 positions
        # at most, which two cores can train.
        model=EfficientUNetConfig(
            channels=(64, 128, 128),
            num_res_blocks=(2, 2, 2),
            strides=(1, 2, 2),
            self_attention=(False, True, True),
            text_attention=("none", "joint", "joint"),
            head_dim=32,
            embed_dim=128,
            patch_size=2,
            # As in the weights that ship; new networks do better with "mix" and without the bias.
            input_skip="add",
            shared_key_bias=True,
        ),
        # Colours and shapes are decided at log-SNRs from -5 to 1; the cosine schedule puts 60 % of
        # the examples there, this normal distribution 92 %.
        diffusion=dataclasses.replace(diffusion, train_levels=NormalLevels(mean=-2.0, std=1.7)),
        train=train,
        # Differs from Imagen: dynamic thresholding greys flat pictures (docs/evaluation.md).
        sample=SampleConfig(
            num_steps=32,
            guidance=Guidance(1.5),
            threshold=StaticThreshold(),
        ),
    )
    # The base has placed and coloured everything: this stage sharpens, from crops and without text
    # or attention.
    sr64 = StageConfig(
        resolution=64,
        low_resolution=32,
        model=EfficientUNetConfig(
            channels=(48, 96),
            num_res_blocks=(2, 2),
            strides=(1, 2),
            self_attention=(False, False),
            text_attention=("none", "none"),
            head_dim=32,
            embed_dim=96,
            patch_size=2,
            # As in the weights that ship; new networks do better with "mix" and without the bias.
            input_skip="add",
            shared_key_bias=True,
        ),
        diffusion=diffusion,
        train=dataclasses.replace(
            train, num_steps=1600, crop_size=32, preview_every=800, save_every=400
        ),
        # Differs from Imagen (0.1 to 0.3): noise costs more outlines than it hides errors of the
        # base.
        sample=SampleConfig(
            num_steps=16, guidance=Guidance(1.0), threshold=StaticThreshold(), aug_level=0.0
        ),
    )
    return to_config_dict(
        CascadeConfig(
            name="emoji",
            text=TextConfig(max_length=24),
            data=DataConfig(source="emoji"),
            stages={"base": base, "sr64": sr64},
        )
    )
