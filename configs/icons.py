"""Icons in eight styles, from sets that npm has: 64 px, then 256 px.

    pip install 'imagen-jax[icons]' && bash scripts/fetch_icons.sh ICONS
    python -m imagen_jax.cli.prepare_data --config=configs/icons.py --config.data.source=icons \
      --config.data.path=ICONS --image_size=256 --out=STORE
    python train.py --config=configs/icons.py --config.data.path=STORE --workdir=runs/icons

Hardware: two CPU cores, a stage on each.
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
    train = TrainConfig(
        batch_size=64,
        num_steps=10_000,
        optimizer=Muon(learning_rate=0.015, adam_b2=0.99),
        learning_rate=1e-3,
        warmup_steps=200,
        lr_decay="linear",
        decay_steps=2000,
        ema_max=0.999,
        log_every=50,
        preview_every=1000,
        save_every=500,
    )
    base = StageConfig(
        resolution=64,
        # Differs from Imagen: the base is an Efficient U-Net too. Its blocks run at 16x16 positions
        # at most, which two cores can train.
        model=EfficientUNetConfig(
            channels=(64, 128, 256),
            num_res_blocks=(2, 2, 2),
            strides=(1, 2, 2),
            self_attention=(False, False, True),
            text_attention=("none", "none", "joint"),
            head_dim=32,
            embed_dim=128,
            patch_size=4,
            input_skip="mix",
        ),
        # Pictures of 64 pixels need more noise than those of 32 (mean -2) to hide the same.
        diffusion=DiffusionConfig(
            prediction="x",
            loss_weighting=MinSNR(power=0.5),
            train_levels=NormalLevels(mean=-2.5, std=2.0),
        ),
        train=train,
        # Differs from Imagen: dynamic thresholding greys flat pictures (docs/evaluation.md).
        sample=SampleConfig(num_steps=32, guidance=Guidance(2.0), threshold=StaticThreshold()),
    )
    # The base has placed and coloured everything: this stage sharpens, from crops and without text
    # or attention.
    sr256 = StageConfig(
        resolution=256,
        low_resolution=64,
        model=EfficientUNetConfig(
            channels=(64, 128),
            num_res_blocks=(2, 2),
            strides=(1, 2),
            self_attention=(False, False),
            text_attention=("none", "none"),
            head_dim=32,
            embed_dim=128,
            patch_size=4,
            input_skip="mix",
        ),
        diffusion=DiffusionConfig(
            prediction="x",
            loss_weighting=MinSNR(power=0.5),
            train_levels=NormalLevels(mean=-3.0, std=2.0),
        ),
        train=dataclasses.replace(train, crop_size=64, num_steps=12_000, decay_steps=3000),
        # Differs from Imagen (0.1 to 0.3): noise costs more outlines than it hides errors of the
        # base.
        sample=SampleConfig(
            num_steps=16, guidance=Guidance(1.0), threshold=StaticThreshold(), aug_level=0.0
        ),
    )
    return to_config_dict(
        CascadeConfig(
            name="icons",
            text=TextConfig(encoder="embedded_icons", max_length=32),
            data=DataConfig(source="array_record"),
            stages={"base": base, "sr256": sr256},
        )
    )
