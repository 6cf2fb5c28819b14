"""Emoji artwork with its names, from the Noto Color Emoji font; the recipe of `shapes_fast.py`.

    apt-get install fonts-noto-color-emoji
    python train.py --config=configs/emoji.py --workdir=runs/emoji
    python sample.py --workdir=runs/emoji --prompts="red apple"

The settings are for two CPU cores; docs/emoji.md shows what to expect after how many minutes.
"""

import dataclasses
from pathlib import Path

from imagen_jax.config import DataConfig, TextConfig, load_config, to_config_dict


def get_config():
    """The config as an `ml_collections.ConfigDict`."""
    shapes = load_config(str(Path(__file__).with_name("shapes_fast.py")))
    base = shapes.stages["base"]
    base = dataclasses.replace(
        base,
        train=dataclasses.replace(base.train, num_steps=3600),
        sample=dataclasses.replace(base.sample, guidance_weight=1.5),  # docs/emoji.md
    )
    return to_config_dict(
        dataclasses.replace(
            shapes,
            name="emoji",
            stages={**shapes.stages, "base": base},
            text=TextConfig(max_length=24),
            data=DataConfig(source="emoji"),
        )
    )
