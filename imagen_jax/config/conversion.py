"""Settings from and to config files, `ml_collections` and JSON."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from imagen_jax.checks import check_choice
from imagen_jax.config.cascade import CascadeConfig
from imagen_jax.config.upgrade import upgrade
from imagen_jax.errors import UserError, brief

# The key that says which dataclass of a choice (a union of dataclasses) a group describes.
KIND = "kind"


def to_dict(config: Any) -> Any:
    """A config dataclass as nested dicts, tuples kept; a choice has its kind as `kind`."""
    if dataclasses.is_dataclass(config):
        values = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        kind = getattr(config, KIND, None)
        return values if kind is None else {KIND: kind, **values}
    if isinstance(config, dict):
        return {key: to_dict(item) for key, item in config.items()}
    return config


def to_json_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as nested plain dicts and lists, ready for `json.dump`."""
    return _lists(to_dict(config))


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_lists(item) for item in value]
    return value


def to_config_dict(config: CascadeConfig):
    """The same tree as an `ml_collections.ConfigDict`, for `get_config()` of a config file."""
    import ml_collections

    return ml_collections.ConfigDict(to_dict(config))


def from_config_dict(config, changed: Collection[str] = ()) -> CascadeConfig:
    """Validates an `ml_collections.ConfigDict`.

    Args:
      config: from a config file, with the changes of the command line.
      changed: the dotted keys that the command line changed. Where it chose another kind, the
        file's settings of the former kind are dropped.

    Raises:
      UserError: see `from_json_dict`.
    """
    values = config.to_dict()
    for key in changed:
        *groups, last = key.split(".")
        if last == KIND:
            _drop_former_kind(values, groups, changed)
    return from_json_dict(values)


def _drop_former_kind(
    values: dict[str, Any], groups: Sequence[str], changed: Collection[str]
) -> None:
    """Removes the settings that the chosen kind does not have, unless they were changed too."""
    hint, node = CascadeConfig, values
    for name in groups:
        is_dict = typing.get_origin(hint) is dict
        hint = typing.get_args(hint)[1] if is_dict else typing.get_type_hints(hint).get(name)
        node = node.get(name) if isinstance(node, dict) else None
    kinds = {choice.kind: choice for choice in typing.get_args(hint) if hasattr(choice, KIND)}
    if not isinstance(node, dict) or node.get(KIND) not in kinds:
        return  # the error names the key when the settings are built
    kept = {KIND, *(field.name for field in dataclasses.fields(kinds[node[KIND]]))}
    for name in node.keys() - kept:
        if ".".join([*groups, name]) not in changed:
            del node[name]


def from_json_dict(values: Mapping[str, Any]) -> CascadeConfig:
    """Builds and validates a `CascadeConfig` from nested mappings.

    Settings that an earlier version of the package wrote are converted.

    Raises:
      UserError: an unknown key (the nearest valid one is named), a value of the wrong type, a
        value out of range, or settings that contradict each other.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"config must be a group of settings, not {brief(values)}")
    try:
        values = upgrade(values)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"config looks like settings of an earlier version of the package, but cannot be "
            f"converted ({type(error).__name__}: {error})"
        ) from error
    return _build(CascadeConfig, values, "config")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested config values by dotted path, for comparing two configs."""
    values = to_json_dict(config) if dataclasses.is_dataclass(config) else config
    flat = {}
    for key, value in values.items():
        path = f"{prefix}.{key}" if prefix else key
        flat.update(flatten(value, path) if isinstance(value, dict) else {path: value})
    return flat


def choice_of_kind(choices: tuple[type, ...], kind: Any, path: str) -> type:
    """The dataclass of `choices` whose `kind` this is. Raises UserError, which names `path`."""
    by_kind = {choice.kind: choice for choice in choices}
    check_choice(path, kind, tuple(by_kind))
    return by_kind[kind]


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"{path} must be a group of settings, not {brief(values)}")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise unknown_key(path, key, names, _in_group_below(key, hints, names))
    converted = {key: _convert(hints[key], v, f"{path}.{key}") for key, v in values.items()}
    try:
        return cls(**converted)
    except UserError as error:
        # A dataclass checks itself; its message starts with the name of the field.
        raise UserError(f"{path}.{error}") from error
    except TypeError as error:
        raise UserError(f"{path} is incomplete: {error}") from error


def unknown_key(path: str, key: str, names: Sequence[str], meant: str | None = None) -> UserError:
    """The error for a `key` that the group `path` lacks, with `meant` or the closest of `names`."""
    near = [meant] if meant else difflib.get_close_matches(key, names, n=1, cutoff=0.7)
    if near:
        hint = f"; did you mean {path}.{near[0]}?"
    else:
        hint = f"; {path} has {', '.join(names) or 'no settings'}"
    return UserError(f"unknown config key {path}.{key}{hint}")


def _in_group_below(key: str, hints: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The path of the setting in a group below that is called `key`, or was in version 1."""
    below = [
        f"{name}.{field.name}"
        for name in names
        for choice in (hints[name], *typing.get_args(hints[name]))
        if dataclasses.is_dataclass(choice)
        for field in dataclasses.fields(choice)
    ]
    # Names of version 1 start or end with the group: min_snr_gamma, guidance_weight.
    same = [path for path in below if key == path.rpartition(".")[2]]
    joined = {path.replace(".", "_"): path for path in below}
    return same[0] if same else joined.get(key)


def _build_choice(choices: tuple[type, ...], values: Any, path: str) -> Any:
    """`values` is a group with a `kind`, or the kind alone."""
    if isinstance(values, str):
        values = {KIND: values}
    if not isinstance(values, Mapping) or KIND not in values:
        kinds = ", ".join(choice.kind for choice in choices)
        raise UserError(f"{path} must be a group with a kind ({kinds}), not {brief(values)}")
    cls = choice_of_kind(choices, values[KIND], f"{path}.{KIND}")
    return _build(cls, {key: value for key, value in values.items() if key != KIND}, path)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _build_choice(arguments, value, path)
    if hasattr(hint, KIND):
        return _build_choice((hint,), value, path)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{path} must be a group of named settings, not {brief(value)}")
        for key in value:
            if not isinstance(key, str):
                raise UserError(f"{path}: the name {brief(key)} must be a string")
        return {k: _convert(arguments[1], v, f"{path}.{k}") for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{path} must be a tuple, not {brief(value)}")
        return tuple(_convert(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if type(value) is int and not -(2**63) <= value < 2**64:
        raise UserError(f"{path}={brief(value)} must fit 64 bits")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{path} must be of type {hint.__name__}, not {brief(value)}")
    return value
