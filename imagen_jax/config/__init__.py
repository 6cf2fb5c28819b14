"""Configuration: `configs/*.py` (ml_collections) to validated frozen dataclasses.

A config file's `get_config()` returns `to_config_dict(CascadeConfig(...))`, so every field has a
default, every key can be overridden on the command line (`--config.stages.base.train.x=y`), and
`from_config_dict` checks names, types and ranges before any program is compiled.
"""

from imagen_jax.aspect import SQUARE, parse_aspect
from imagen_jax.config.cascade import CascadeConfig
from imagen_jax.config.conversion import (
    choice_of_kind,
    flatten,
    from_config_dict,
    from_json_dict,
    to_config_dict,
    to_json_dict,
)
from imagen_jax.config.data import MAX_PIXELS, SOURCES, DataConfig, MixConfig, SourceConfig
from imagen_jax.config.file import load_config, read_config_file
from imagen_jax.config.stage import DiffusionConfig, SampleConfig, StageConfig, TrainConfig
from imagen_jax.config.text import CLEANINGS, TextConfig
from imagen_jax.parallel.mesh import MeshConfig

__all__ = [
    "CLEANINGS",
    "MAX_PIXELS",
    "SOURCES",
    "SQUARE",
    "CascadeConfig",
    "DataConfig",
    "DiffusionConfig",
    "MeshConfig",
    "MixConfig",
    "SampleConfig",
    "SourceConfig",
    "StageConfig",
    "TextConfig",
    "TrainConfig",
    "choice_of_kind",
    "flatten",
    "from_config_dict",
    "from_json_dict",
    "load_config",
    "parse_aspect",
    "read_config_file",
    "to_config_dict",
    "to_json_dict",
]
