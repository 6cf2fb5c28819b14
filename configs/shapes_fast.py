"""The scenes and networks of `shapes32.py` with a recipe for few pictures, for two CPU cores.

    python train.py --config=configs/shapes_fast.py --workdir=runs/shapes_fast
    python sample.py --workdir=runs/shapes_fast --prompts="a red circle"

docs/recipes.md has what each choice is worth: after 192,000 pictures, an hour, the base has nearly
the errors of `shapes32.py` after 1,024,000 pictures, but obeys less. No weights of it ship.
"""

import dataclasses
from pathlib import Path

from imagen_jax.config import DiffusionConfig, load_config, to_config_dict


def get_config():
    """The config as an `ml_collections.ConfigDict`."""
    shapes = load_config(str(Path(__file__).with_name("shapes32.py")))
    base = shapes.stages["base"]
    train = dataclasses.replace(
        base.train,
        num_steps=6000,
        optimizer="muon",
        muon_learning_rate=0.015,
        warmup_steps=100,
        ema_max=0.998,
        preview_every=1000,
        save_every=500,
    )
    diffusion = DiffusionConfig(prediction="x", loss_weighting="min_snr", min_snr_power=0.5)
    base = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, strides=(1, 2, 2), patch_size=2, input_skip=True),
        # Colours and shapes are decided at log-SNRs from -5 to 1; the cosine schedule puts 60 % of
        # the examples there, this normal distribution 92 %.
        diffusion=dataclasses.replace(
            diffusion, train_levels="normal", logsnr_mean=-2.0, logsnr_std=1.7
        ),
        train=train,
    )
    stages = {**shapes.stages, "base": base}
    return to_config_dict(dataclasses.replace(shapes, name="shapes_fast", stages=stages))
