"""Settings from and to config files, `ml_collections` and JSON."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any

from imagen_jax.config.checks import validate
from imagen_jax.config.settings import CascadeConfig
from imagen_jax.errors import UserError


def to_json_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as nested plain dicts and lists, ready for `json.dump`."""
    return _jsonable(dataclasses.asdict(config))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_jsonable(item) for item in value]
    return value


def to_config_dict(config: CascadeConfig):
    """The same tree as an `ml_collections.ConfigDict`, for `get_config()` of a config file."""
    import ml_collections

    return ml_collections.ConfigDict(dataclasses.asdict(config))


def from_config_dict(config) -> CascadeConfig:
    """Validates an `ml_collections.ConfigDict`. Raises UserError, see `from_json_dict`."""
    return from_json_dict(config.to_dict())


def from_json_dict(values: Mapping[str, Any]) -> CascadeConfig:
    """Builds and validates a `CascadeConfig` from nested mappings.

    Raises:
      UserError: an unknown key (the nearest valid one is named), a value of the wrong type, a
        value out of range, or settings that contradict each other.
    """
    config = _build(CascadeConfig, values, "config")
    validate(config)
    return config


def load_config(path: str) -> CascadeConfig:
    """Runs the `get_config()` of a config file and validates what it returns."""
    import os
    import runpy

    if not os.path.isfile(path):
        raise UserError(f"config file {path!r} does not exist")
    namespace = runpy.run_path(path)
    if "get_config" not in namespace:
        raise UserError(f"config file {path!r} defines no get_config()")
    return from_config_dict(namespace["get_config"]())


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested config values by dotted path, for comparing two configs."""
    values = to_json_dict(config) if dataclasses.is_dataclass(config) else config
    flat = {}
    for key, value in values.items():
        path = f"{prefix}.{key}" if prefix else key
        flat.update(flatten(value, path) if isinstance(value, dict) else {path: value})
    return flat


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"{path} must be a group of settings, not {values!r}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)[0]
            raise UserError(f"unknown config key {path}.{key}; did you mean {path}.{near}?")
    return cls(**{key: _convert(hints[key], v, f"{path}.{key}") for key, v in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{path} must be a group of named settings, not {value!r}")
        return {k: _convert(arguments[1], v, f"{path}.{k}") for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{path} must be a tuple, not {value!r}")
        return tuple(_convert(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{path} must be of type {hint.__name__}, not {value!r}")
    return value
