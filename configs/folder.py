"""Your own pictures: a folder with a `.txt` caption beside each picture, or a `metadata.jsonl`.

    python train.py --config=configs/folder.py --config.data.path=PICTURES --workdir=runs/mine
    python sample.py --workdir=runs/mine --prompts="what one of your captions says"

The recipe of `shapes_fast.py`, for two CPU cores. The built-in text encoder knows simple English
only; for more, point `config.text.encoder` at a Hugging Face T5 directory.
"""

import dataclasses
from pathlib import Path

from imagen_jax.config import DataConfig, TextConfig, load_config, to_config_dict


def get_config():
    """The config as an `ml_collections.ConfigDict`."""
    shapes = load_config(str(Path(__file__).with_name("shapes_fast.py")))
    return to_config_dict(
        dataclasses.replace(
            shapes,
            name="folder",
            text=TextConfig(max_length=64),
            data=DataConfig(source="folder"),
        )
    )
