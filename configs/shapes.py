"""Drawn scenes of coloured shapes: 16 px, then 64 px. The weights of this config ship.

    python sample.py --config=configs/shapes.py --prompts="a red circle"
    python train.py --config=configs/shapes.py --workdir=runs/shapes

Hardware: two CPU cores, a stage on each; a GPU takes larger batches of the same run. Time: the
shipped weights took three hours of one core for the base and 1.8 for the second stage. Result:
colours and backgrounds are right, the shape in three of five prompts of one object; score and
commands are in the model card, imagen_jax/weights/shapes/README.md.
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
from imagen_jax.diffusion.samplers import Ancestral
from imagen_jax.diffusion.schedules import NormalLevels
from imagen_jax.diffusion.thresholding import StaticThreshold
from imagen_jax.models import EfficientUNetConfig
from imagen_jax.optimizers import Muon


def get_config():
    """The config as an `ml_collections.ConfigDict`."""
    # docs/decisions.md has what each choice is worth.
    diffusion = DiffusionConfig(
        prediction="x",
        loss_weighting=MinSNR(power=0.5),
        # Colours and shapes are decided at log-SNRs from -5 to 2 of these few pixels.
        train_levels=NormalLevels(mean=-0.7, std=1.7),
    )
    train = TrainConfig(
        batch_size=64,
        num_steps=20_000,
        optimizer=Muon(learning_rate=0.015, adam_b2=0.99),
        learning_rate=1e-3,
        warmup_steps=100,
        ema_max=0.999,
        log_every=50,
        preview_every=1000,
        save_every=500,
    )
    # Differs from Imagen: few pixels and small networks, which learn more here in equal time.
    model = EfficientUNetConfig(
        channels=(64, 96),
        num_res_blocks=(2, 2),
        strides=(1, 2),
        self_attention=(True, True),
        text_attention=("joint", "joint"),
        head_dim=32,
        embed_dim=128,
        patch_size=2,
        # As in the weights that ship; new networks do better with "mix" and without the bias.
        input_skip="add",
        shared_key_bias=True,
    )
    base = StageConfig(
        resolution=16,
        model=model,
        diffusion=diffusion,
        train=train,
        # Differs from Imagen: dynamic thresholding greys flat pictures (docs/evaluation.md).
        sample=SampleConfig(
            sampler=Ancestral(),
            num_steps=64,
            guidance=Guidance(3.0),
            threshold=StaticThreshold(),
        ),
    )
    # The outline is not decided at 16 pixels, so this stage reads the text too.
    sr64 = StageConfig(
        resolution=64,
        low_resolution=16,
        model=dataclasses.replace(
            model,
            self_attention=(False, True),
            text_attention=("none", "joint"),
            patch_size=4,
        ),
        diffusion=dataclasses.replace(diffusion, train_levels=NormalLevels(mean=-2.0, std=2.0)),
        train=dataclasses.replace(train, batch_size=32, num_steps=6000),
        # Differs from Imagen (0.1 to 0.3): noise costs more outlines than it hides errors of the
        # base.
        sample=SampleConfig(
            num_steps=16, guidance=Guidance(1.0), threshold=StaticThreshold(), aug_level=0.0
        ),
    )
    return to_config_dict(
        CascadeConfig(
            name="shapes",
            text=TextConfig(max_length=24),
            data=DataConfig(source="shapes"),
            stages={"base": base, "sr64": sr64},
        )
    )
