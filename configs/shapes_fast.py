"""The scenes of `shapes.py` with the recipe that learns most from few pictures, for two CPU cores.

    python train.py --config=configs/shapes_fast.py --workdir=runs/shapes_fast
    python sample.py --workdir=runs/shapes_fast --prompts="a red circle"

docs/recipes.md has what each choice is worth: after 192,000 pictures, an hour, the base has
nearly the errors of the weights that ship with `shapes.py` (1,024,000 pictures), but obeys less. No
weights of it ship yet.
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
        num_steps=6000,
        optimizer="muon",
        learning_rate=1e-3,
        muon_learning_rate=0.015,
        warmup_steps=100,
        adam_b2=0.99,
        ema_max=0.998,
        log_every=50,
        preview_every=1000,
        save_every=500,
    )
    # What each of these is worth is in docs/recipes.md. Colours and shapes are decided at log-SNRs
    # from -5 to 1; the cosine schedule puts 60 % of the examples there, this normal one 92 %.
    diffusion = DiffusionConfig(
        prediction="x",
        loss_weighting="min_snr",
        min_snr_power=0.5,
        train_levels="normal",
        logsnr_mean=-2.0,
        logsnr_std=1.7,
    )
    base = StageConfig(
        resolution=32,
        # Differs from Imagen: the base is an Efficient U-Net too, on 2x2 patches. It works on 16x16
        # positions at most, which two cores can train.
        model=ModelConfig(
            channels=(64, 128, 128),
            num_res_blocks=(2, 2, 2),
            strides=(1, 2, 2),
            self_attention=(False, True, True),
            text_attention=("none", "joint", "joint"),
            head_dim=32,
            embed_dim=128,
            patch_size=2,
            input_skip=True,
        ),
        diffusion=diffusion,
        train=train,
        sample=SampleConfig(num_steps=32, guidance_weight=3.0),
    )
    sr64 = StageConfig(
        resolution=64,
        low_resolution=32,
        # The base has placed and coloured everything: this one sharpens, from crops and without
        # text or attention.
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
        diffusion=dataclasses.replace(diffusion, train_levels="schedule"),
        train=dataclasses.replace(train, num_steps=1600, crop_size=32),
        sample=SampleConfig(num_steps=16, guidance_weight=1.0, aug_level=0.1),
    )
    return to_config_dict(
        CascadeConfig(
            name="shapes_fast",
            text=TextConfig(max_length=32),
            data=DataConfig(source="shapes"),
            stages={"base": base, "sr64": sr64},
        )
    )
