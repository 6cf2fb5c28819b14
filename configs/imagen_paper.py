"""Imagen to the letter of the paper (arXiv 2205.11487): 64 px, 256 px, 1024 px.

    python train.py --config=configs/imagen_paper.py --config.text.encoder=T5_XXL_DIRECTORY \
        --config.data.path=PICTURES --workdir=runs/imagen_paper --stage=base

Each setting names its section. What the paper leaves open is marked so, with where our choice
comes from.

Hardware: the paper's was 256 TPU v4 for the base and 128 for each super-resolution stage (section
4.1); docs/scale.md has the slices that each stage fits and estimates the days of a run. Result:
unknown, since no run of this config has been made. `configs/imagen.py` is what we would train.
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
from imagen_jax.diffusion.losses import Unweighted
from imagen_jax.diffusion.samplers import DDIM
from imagen_jax.diffusion.schedules import Cosine, Linear
from imagen_jax.diffusion.thresholding import DynamicThreshold
from imagen_jax.models import presets
from imagen_jax.optimizers import Adafactor, Adam


def get_config():
    """The config as an `ml_collections.ConfigDict`."""
    train = TrainConfig(
        batch_size=2048,  # section 4.1, all models
        num_steps=2_500_000,  # section 4.1, all models
        learning_rate=1e-4,  # F.1 to F.3
        warmup_steps=10_000,  # F.1 to F.3
        # Listings of F.1 and F.2: warmup_cosine_decay_schedule over 2.5 M steps; their
        # end_value=2500000 is a slip, we end at 0. The text names the warm-up alone.
        lr_decay="cosine",
        text_drop_rate=0.1,  # section 4.1: unconditional by zeroed embeddings, all models
        # Not in the paper; those of the same authors' public code (progressive distillation).
        clip_norm=1.0,
        ema_max=0.9999,
        log_every=100,
        preview_every=10_000,
        save_every=5_000,
        validate_every=5_000,
        validation_images=4096,
    )
    # Section 4.1: Adafactor for the base, Adam where Adafactor hurt. "Default" settings of optax
    # (F.1), which scale each update by the size of the parameter.
    adafactor = dataclasses.replace(train, optimizer=Adafactor(parameter_scale=True))
    # F.2 and F.3: b1 0.9 (fixed in this package), b2 0.999, eps 1e-8 (fixed), no weight decay.
    adam = dataclasses.replace(train, optimizer=Adam(b2=0.999))
    # App. A: eps-prediction with an unweighted squared error; F.1, F.2: cosine in continuous time.
    cosine = DiffusionConfig(schedule=Cosine(), prediction="eps", loss_weighting=Unweighted())
    # F.3: linear betas, 1e-4 to 0.02 in 1000 steps, in continuous time.
    linear = dataclasses.replace(cosine, schedule=Linear())
    # Table 1 (zero-shot FID 7.27) for the weights; dynamic thresholding (section 2.3) with the one
    # percentile that is named (Fig. A.10). Number of steps and which of the two samplers a stage
    # uses are not in the paper: steps of Imagen Video, DDIM throughout.
    sample = SampleConfig(
        sampler=DDIM(),
        num_steps=256,
        guidance=Guidance(1.35),
        threshold=DynamicThreshold(percentile=99.5),
    )
    # D.2: aug_level 0 has the best FID; 0.1 to 0.3 (section 2.4) the best looks.
    upscale = dataclasses.replace(sample, num_steps=128, guidance=Guidance(8.0), aug_level=0.0)
    # dropout 0 everywhere (F.1 to F.3), which is the default; compute in bfloat16 is our choice,
    # as the paper does not name its precision.
    base = StageConfig(
        resolution=64,
        model=presets.base64(),  # F.1
        diffusion=cosine,
        train=adafactor,
        sample=sample,
    )
    sr256 = StageConfig(
        resolution=256,
        low_resolution=64,
        model=presets.sr256(),  # F.2
        diffusion=cosine,
        train=adam,
        sample=upscale,
    )
    sr1024 = StageConfig(
        resolution=1024,
        low_resolution=256,
        model=presets.sr1024(),  # F.3
        diffusion=linear,
        # Section 2.5: 64 -> 256 crops of the 1024 pictures.
        train=dataclasses.replace(adam, crop_size=256),
        sample=upscale,
    )
    return to_config_dict(
        CascadeConfig(
            name="imagen_paper",
            # T5-XXL (section 2.1), with --config.text.encoder; the length is not in the paper.
            text=TextConfig(max_length=128),
            # The paper's 860 M pairs (section 4.1) are not public. Flips are not mentioned.
            data=DataConfig(source="folder", flip=False, num_threads=16),
            stages={"base": base, "sr256": sr256, "sr1024": sr1024},
        )
    )
