"""Drawn scenes of coloured shapes: 16 px, then 64 px. The weights of this config ship.

    python sample.py --config=configs/shapes.py --prompts="a red circle"
    python train.py --config=configs/shapes.py --workdir=runs/shapes

The settings are for one CPU core a stage. A GPU takes larger batches of the same run, see
docs/shapes.md for the commands that made the shipped weights and for what they score.
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
    # docs/recipes.md has what each choice is worth in this file.
    diffusion = DiffusionConfig(
        prediction="x",
        loss_weighting="min_snr",
        min_snr_power=0.5,
        # Colours and shapes are decided at log-SNRs from -5 to 2 of these few pixels.
        train_levels="normal",
        logsnr_mean=-0.7,
        logsnr_std=1.7,
    )
    train = TrainConfig(
        batch_size=64,
        num_steps=20_000,
        optimizer="muon",
        learning_rate=1e-3,
        muon_learning_rate=0.015,
        warmup_steps=100,
        adam_b2=0.99,
        ema_max=0.999,
        log_every=50,
        preview_every=1000,
        save_every=500,
    )
    # Differs from Imagen: few pixels and small networks, since in equal time they learn more here.
    model = ModelConfig(
        channels=(64, 96),
        num_res_blocks=(2, 2),
        strides=(1, 2),
        self_attention=(True, True),
        text_attention=("joint", "joint"),
        head_dim=32,
        embed_dim=128,
        patch_size=2,
        input_skip=True,
    )
    # Differs from Imagen: dynamic thresholding greys flat pictures (docs/evaluation.md).
    sample = SampleConfig(
        sampler="ancestral", num_steps=64, guidance_weight=3.0, threshold="static"
    )
    base = StageConfig(resolution=16, model=model, diffusion=diffusion, train=train, sample=sample)
    # 16 pixels leave open what an outline is, so this stage reads the text too.
    sr64 = StageConfig(
        resolution=64,
        low_resolution=16,
        model=dataclasses.replace(
            model,
            self_attention=(False, True),
            text_attention=("none", "joint"),
            patch_size=4,
        ),
        diffusion=dataclasses.replace(diffusion, logsnr_mean=-2.0, logsnr_std=2.0),
        train=dataclasses.replace(train, batch_size=32, num_steps=6000),
        # Differs from Imagen (0.1 to 0.3): noise costs more outlines than it hides of the base.
        sample=SampleConfig(num_steps=16, guidance_weight=1.0, threshold="static", aug_level=0.0),
    )
    return to_config_dict(
        CascadeConfig(
            name="shapes",
            text=TextConfig(max_length=24),
            data=DataConfig(source="shapes"),
            stages={"base": base, "sr64": sr64},
        )
    )
