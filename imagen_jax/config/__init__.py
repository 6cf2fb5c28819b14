"""Configuration: `configs/*.py` (ml_collections) to validated frozen dataclasses.

A config file's `get_config()` returns `to_config_dict(CascadeConfig(...))`, so every field has a
default in `settings`, every key can be overridden on the command line
(`--config.stages.base.train.x=y`) and `from_config_dict` checks names, types and ranges before any
program is compiled. Nothing here imports jax or ml_collections at import time.
"""

from imagen_jax.config.buckets import (
    SQUARE,
    level_stride,
    parse_aspect,
    stage_shapes,
    total_stride,
)
from imagen_jax.config.checks import validate, validate_sample
from imagen_jax.config.conversion import (
    flatten,
    from_config_dict,
    from_json_dict,
    load_config,
    to_config_dict,
    to_json_dict,
)
from imagen_jax.config.settings import (
    CLEANINGS,
    SOURCES,
    CascadeConfig,
    DataConfig,
    DiffusionConfig,
    MeshConfig,
    MixConfig,
    ModelConfig,
    SampleConfig,
    SourceConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
)

__all__ = [
    "CLEANINGS",
    "SOURCES",
    "SQUARE",
    "CascadeConfig",
    "DataConfig",
    "DiffusionConfig",
    "MeshConfig",
    "MixConfig",
    "ModelConfig",
    "SampleConfig",
    "SourceConfig",
    "StageConfig",
    "TextConfig",
    "TrainConfig",
    "flatten",
    "from_config_dict",
    "from_json_dict",
    "level_stride",
    "load_config",
    "parse_aspect",
    "stage_shapes",
    "to_config_dict",
    "to_json_dict",
    "total_stride",
    "validate",
    "validate_sample",
]
