"""Reads what `artefact` wrote, which may come from a stranger.

A stranger's file is either read or refused with one message that names the file and the entry.
Nothing outside its directory is read, and nothing but regular files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from imagen_jax.config import CascadeConfig, StageConfig, from_json_dict
from imagen_jax.errors import UserError, brief
from imagen_jax.foreign_files import (
    MAX_JSON_BYTES,
    check_file_name,
    explain_damage,
    parse_json_object,
    read_bytes,
    read_json_object,
)
from imagen_jax.types import Params
from imagen_jax.weights.artefact import (
    CONFIG_FILE,
    READABLE_VERSIONS,
    Artefact,
    StageWeights,
)

# Of a parameter: names of modules, joined by "/".
_PARAMETER = re.compile(r"[A-Za-z0-9_.-]{1,100}(/[A-Za-z0-9_.-]{1,100}){0,15}")
# The header of a safetensors file.
_MAX_HEADER_BYTES = 100_000_000
_MISSING = "copy the whole directory, or export it again"
_DTYPES = "weights are float16 or float32; export them again"


def load(path: str | os.PathLike[str]) -> Artefact:
    """Reads a directory written by `save_cascade` or `save_stage`, or a whole workdir.

    It may be read while a run writes to it.

    Raises:
      UserError: nothing there, damaged or altered files, an unknown format version, stages of a
        workdir that were trained with different text encoders.
    """
    path = epath.Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give the directory of a run or of its weights")
    if (path / CONFIG_FILE).is_file():
        return load_directory(path)
    stage_directories = sorted(p.parent for p in path.glob(f"*/ema/{CONFIG_FILE}"))
    if not stage_directories and (path / "ema" / CONFIG_FILE).is_file():
        stage_directories = [path / "ema"]  # workdir/<stage>
    if not stage_directories:
        raise UserError(
            f"no weights in {path}: neither {CONFIG_FILE} nor <stage>/ema/{CONFIG_FILE}. A run "
            "writes them with its checkpoints: python train.py --config=configs/NAME.py "
            f"--workdir={path}"
        )
    return _merge(path, [load_directory(directory) for directory in stage_directories])


def exported_steps(directory: str | os.PathLike[str], stage_name: str) -> int | None:
    """How many steps the weights that `save_stage` wrote there were trained for.

    None where there are none, or not whole; the hash of the weights is not compared.
    """
    directory = epath.Path(directory)
    if not (directory / CONFIG_FILE).exists():
        return None
    path = directory / CONFIG_FILE
    try:
        records = _entry(read_json_object(path), "stages", dict, path)
        record = _entry(records, stage_name, dict, path)
        file = directory / check_file_name(record.get("file"), f"{path}: file")
        return _entry(record, "steps", int, path) if file.is_file() else None
    except UserError:
        return None


def load_directory(directory: epath.Path) -> Artefact:
    """Reads one directory with a `config.json`; see `load`."""
    path = directory / CONFIG_FILE
    while True:
        data = read_bytes(path, at_most=MAX_JSON_BYTES)
        try:
            return _load_as_described(directory, parse_json_object(data, path))
        except UserError:
            # A run may have replaced the weights since config.json was read: then read again.
            if read_bytes(path, at_most=MAX_JSON_BYTES) == data:
                raise


def _load_as_described(directory: epath.Path, content: Mapping[str, Any]) -> Artefact:
    path = directory / CONFIG_FILE
    if "format_version" not in content:
        raise UserError(f"{path} is not the configuration of an artefact: it has no format_version")
    version = content["format_version"]
    if type(version) is not int or version not in READABLE_VERSIONS:
        raise UserError(
            f"{path} has format version {brief(version)}; this package reads "
            f"{', '.join(map(str, READABLE_VERSIONS))}. Update imagen_jax, or export the weights "
            "again"
        )
    config = _read_config(_entry(content, "cascade", dict, path), path)
    text = _entry(content, "text", dict, path)
    stages = {}
    for name in _entry(content, "stages", dict, path):
        if name not in config.stages:
            raise UserError(
                f"{path} has weights of stage {brief(name)}, which its cascade lacks: that has "
                f"{', '.join(config.stages)}"
            )
        record = _entry(content["stages"], name, dict, path)
        stages[name] = _read_weights(directory, record, config.stages[name])
    return Artefact(
        config=config,
        encoder_identity=_entry(text, "encoder_identity", str, path),
        tokenizer_hash=_entry(text, "tokenizer_hash", str, path),
        stages=stages,
    )


def _read_config(values: Mapping[str, Any], path: epath.Path) -> CascadeConfig:
    try:
        return from_json_dict(values)
    except UserError as error:
        reason = str(error)
        reason = reason if len(reason) <= 500 else f"{reason[:500]}..."
        raise UserError(f"{path}: {reason}") from error


def _read_weights(
    directory: epath.Path, record: Mapping[str, Any], config: StageConfig
) -> StageWeights:
    where = directory / CONFIG_FILE
    path = directory / check_file_name(record.get("file"), f"{where}: file")
    sha256 = _entry(record, "sha256", str, where)
    num_parameters = _count(record, "num_parameters", where, at_least=1)
    training = _entry(record, "training", dict, where)
    _check_shapes(training, config, where)
    # float64 at most; a file may hold gaps that take no room on the disk.
    limit = 8 * num_parameters + _MAX_HEADER_BYTES
    data = read_bytes(path, at_most=limit, missing=_MISSING)
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise UserError(
            f"{path} is damaged or was altered: its sha256 is {digest[:12]}..., "
            f"{CONFIG_FILE} says {brief(sha256[:12])}.... Fetch or export it again"
        )
    flat = _read_tensors(data, path)
    params = _nest(flat, path)
    held = sum(value.size for value in flat.values())
    if held != num_parameters:
        raise UserError(
            f"{path} holds {held:,} parameters, but {CONFIG_FILE} says {num_parameters:,}: export "
            "it again"
        )
    return StageWeights(
        params=params,
        sha256=digest,
        num_parameters=num_parameters,
        images_seen=_count(record, "images_seen", where),
        steps=_count(record, "steps", where),
        training=training,
    )


def _read_tensors(data: bytes, path: epath.Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file in float32, by name."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({explain_damage(data, error)}): fetch or "
            "export it again"
        ) from error
    except KeyError as error:  # a type of numbers that numpy lacks
        raise UserError(f"{path} holds {error}: {_DTYPES}") from error
    for name, value in tensors.items():
        if value.dtype not in (np.float16, np.float32):
            raise UserError(f"{path}: {brief(name)} holds {value.dtype}: {_DTYPES}")
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def _nest(flat: Mapping[str, np.ndarray], path: epath.Path) -> Params:
    """Nested dicts from "/"-joined names."""
    params: Params = {}
    for name, value in flat.items():
        if not _PARAMETER.fullmatch(name):
            raise UserError(f"{path} has a tensor {brief(name)}, which is no name of a parameter")
        *groups, last = name.split("/")
        node = params
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise UserError(f"{path}: {name!r} is both a parameter and a group of parameters")
        node[last] = value
    return params


def _entry(values: Mapping[str, Any], name: str, kind: type, path: epath.Path) -> Any:
    """`values[name]`. Raises UserError if it is missing or of another type."""
    if name not in values:
        raise UserError(f"{path} lacks the entry {name!r}: export the weights again")
    if type(values[name]) is not kind:
        what = {dict: "an object", str: "a string", int: "a whole number"}[kind]
        raise UserError(f"{path}: {name!r} must be {what}, not {brief(values[name])}")
    return values[name]


def _count(values: Mapping[str, Any], name: str, path: epath.Path, at_least: int = 0) -> int:
    value = _entry(values, name, int, path)
    if not at_least <= value < 2**63:
        raise UserError(f"{path}: {name}={brief(value)} must be at least {at_least} and below 2^63")
    return value


def _check_shapes(training: Mapping[str, Any], config: StageConfig, path: epath.Path) -> None:
    """Checks the shapes in which a stage says that it was trained, if it says so."""
    if "shapes" not in training:
        return
    for aspect, shape in _entry(training, "shapes", dict, path).items():
        # Shapes have about as many pixels as the square.
        fits = (
            isinstance(shape, list)
            and len(shape) == 2
            and all(type(side) is int and side > 0 for side in shape)
            and shape[0] * shape[1] <= 2 * config.resolution**2
        )
        if not fits:
            raise UserError(
                f"{path}: the shape of {aspect} is {brief(shape)}; it must be [height, width] with "
                f"about as many pixels as {config.resolution}x{config.resolution}"
            )


def _merge(workdir: epath.Path, parts: list[Artefact]) -> Artefact:
    """The stages of one run, each with its own configuration, as one artefact."""
    first = parts[0]
    stages, configs = {}, dict(first.config.stages)
    for part in parts:
        for what in ("encoder_identity", "tokenizer_hash"):
            if getattr(part, what) != getattr(first, what):
                raise UserError(
                    f"the stages in {workdir} were trained with different text encoders "
                    f"({what}): train them with the same one, or sample from one <stage>/ema"
                )
        stages |= part.stages
        configs |= {name: part.config.stages[name] for name in part.stages}
    return dataclasses.replace(
        first, config=dataclasses.replace(first.config, stages=configs), stages=stages
    )
