"""Imagen as we would train it: 64 px, 256 px, 1024 px, on a folder of pictures with captions.

    python train.py --config=configs/imagen.py --config.text.encoder=T5_XXL_DIRECTORY \
        --config.data.path=PICTURES --workdir=runs/imagen --stage=base

Hardware: a pod slice for each stage; docs/scale.md says which ones it fits and estimates the days
of a run. Result: unknown, since no run of this config has been made.

The networks are the paper's (App. F). Training differs from the paper in two settings:

- v-prediction: eps in super-resolution shifts colours (Imagen Video).
- sigmoid weighting of the loss with bias -2: on plain shapes it has a quarter less error at the
  noise levels where objects take shape, and a few percent more at the highest (docs/decisions.md).

Not taken over from the small configs, because what they are worth depends on what the pictures look
like at a given noise level: normal training levels, x-prediction with `input_skip`, Muon.
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
from imagen_jax.diffusion.losses import Sigmoid
from imagen_jax.models import presets
from imagen_jax.optimizers import Adafactor, Adam


def get_config():
    """The config as an `ml_collections.ConfigDict`."""
    train = TrainConfig(
        batch_size=2048,  # section 4.1, all models
        num_steps=2_500_000,
        optimizer=Adam(),
        learning_rate=1e-4,
        warmup_steps=10_000,
        lr_decay="constant",  # F.1, the text; the listing's decay is unclear
        log_every=100,
        preview_every=10_000,
        save_every=5_000,
        validate_every=5_000,
        validation_images=4096,
    )
    diffusion = DiffusionConfig(prediction="v", loss_weighting=Sigmoid(bias=-2.0))
    # Imagen does not say how many steps it samples with; these are those of Imagen Video. The
    # guidance is that of Fig. A.10, aug_level from section 2.4 (0.1 to 0.3).
    base = StageConfig(
        resolution=64,
        model=presets.base64(),
        diffusion=diffusion,
        train=dataclasses.replace(train, optimizer=Adafactor()),  # section 4.1: saves memory
        sample=SampleConfig(num_steps=256, guidance=Guidance(5.0)),
    )
    sr256 = StageConfig(
        resolution=256,
        low_resolution=64,
        model=presets.sr256(),
        diffusion=diffusion,
        train=train,
        sample=SampleConfig(num_steps=128, guidance=Guidance(5.0), aug_level=0.2),
    )
    sr1024 = StageConfig(
        resolution=1024,
        low_resolution=256,
        model=presets.sr1024(),
        diffusion=diffusion,
        train=dataclasses.replace(train, crop_size=256),  # section 2.5
        sample=SampleConfig(num_steps=128, guidance=Guidance(5.0), aug_level=0.2),
    )
    return to_config_dict(
        CascadeConfig(
            name="imagen",
            text=TextConfig(max_length=128),
            data=DataConfig(source="folder", num_threads=16),
            stages={"base": base, "sr256": sr256, "sr1024": sr1024},
        )
    )
