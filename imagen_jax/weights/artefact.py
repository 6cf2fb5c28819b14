"""Weights on disk: what training writes and sampling reads. No pickle.

An artefact is a directory with one `config.json` and one safetensors file per stage:

    config.json      format version, the whole CascadeConfig, identity of the text encoder and
                     hash of its tokenizer, and for every stage: file name, sha256, number of
                     parameters, images seen, steps, the training summary
    base.safetensors flat "/"-joined parameter paths, float16 or float32

`save_cascade` writes a whole cascade that way (the weights that ship in `imagen_jax/weights/`
are such directories). A run writes each stage on its own to `workdir/<stage>/ema/` with
`save_stage`; there the file name carries the hash, so that replacing `config.json` is the one
atomic step: a reader, or a process killed half-way, finds the old weights or the new ones.
`weights.load` reads either kind of directory, or a workdir with several `<stage>/ema/`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from imagen_jax.config import CascadeConfig, to_json_dict
from imagen_jax.errors import UserError
from imagen_jax.files import is_remote, temporary_beside, write_atomically
from imagen_jax.types import Params
from imagen_jax.version import __version__
from imagen_jax.weights.tensor_file import file_order, write_tensors

# 2: choices among the settings (sampler, optimizer, ...) are groups with a `kind`.
FORMAT_VERSION = 3
# Settings of earlier versions are converted when they are read.
READABLE_VERSIONS = (1, 2, FORMAT_VERSION)
# Metadata of the safetensors files, which are those of version 1.
TENSOR_FORMAT = "imagen_jax 1"
CONFIG_FILE = "config.json"

# DDPM on CIFAR-10 (36 M parameters, 102 M images), ADM at 64 px (296 M, 1.1 G), EDM on CIFAR-10
# (56 M, 200 M) and Imagen's base (2 G, 5.1 G) lie between 2.5 and 3.7 images per parameter.
IMAGES_PER_PARAMETER = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageWeights:
    """The weights of one stage and where they come from.

    Attributes:
      params: nested dict of float32 numpy arrays.
      sha256: hash of the file that they were read from.
      images_seen, steps: length of the training.
      training: everything that the trainer said about itself, JSON-like.
    """

    params: Params
    sha256: str
    num_parameters: int
    images_seen: int
    steps: int
    training: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artefact:
    """A cascade, or a part of it: `stages` may lack stages that `config` names."""

    config: CascadeConfig
    encoder_identity: str
    tokenizer_hash: str
    stages: dict[str, StageWeights]


def typical_images(num_parameters: int) -> int:
    """How many training images published pixel diffusion models of this size have seen."""
    return IMAGES_PER_PARAMETER * num_parameters


def few_images(images_seen: int, num_parameters: int) -> str | None:
    """What to expect of weights that saw less than a hundredth of `typical_images`, or None."""
    typical = typical_images(num_parameters)
    if images_seen >= typical / 100:
        return None
    return (
        f"these weights saw only {images_seen:,} images; {typical:,} are typical for "
        f"{num_parameters:,} parameters: expect noise or blurs, and train for longer"
    )


# ------------------------------------------------------------------------------------- writing


def save_stage(
    directory: str | os.PathLike[str],
    stage_name: str,
    cascade_config: CascadeConfig,
    ema_params: Params,
    training_summary: Mapping[str, Any],
    encoder_identity: str,
    tokenizer_hash: str,
    *,
    dtype: str = "float32",
    read: Callable[[Any], np.ndarray] = np.asarray,
) -> epath.Path:
    """Writes or atomically replaces the artefact of one stage of a run.

    Args:
      directory: `workdir/<stage>/ema`; made if missing.
      stage_name: a stage of `cascade_config`.
      ema_params: nested dict of arrays.
      training_summary: JSON-like, with at least the integers `steps` and `images_seen`.
      encoder_identity, tokenizer_hash: of the `TextEncoder` that the stage was trained with.
      dtype: "float32" or "float16".
      read: gives the values of one of the arrays; called once for each, in the order of
        `reading_order`. One array at a time is in memory.

    Returns: the path of the weights file.

    Raises:
      UserError: values do not fit float16.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    record = _write_weights(directory, stage_name, ema_params, training_summary, dtype, read)
    _write_config(directory, cascade_config, encoder_identity, tokenizer_hash, {stage_name: record})
    # Older weights, and what a killed run was about to write.
    for pattern in (f"{stage_name}-*.safetensors", f".{stage_name}-*.tmp", f".{CONFIG_FILE}.*.tmp"):
        for old in directory.glob(pattern):
            if old.name != record["file"]:
                old.unlink(missing_ok=True)
    return directory / record["file"]


def reading_order(params: Params) -> list[Any]:
    """The arrays of a nested dict in the order in which `save_stage` reads them."""
    flat = flatten_params(params)
    return [flat[name] for name in file_order(flat)]


def save_cascade(
    directory: str | os.PathLike[str], artefact: Artefact, *, dtype: str = "float16"
) -> None:
    """Writes all stages of `artefact` into one directory, as they ship in `imagen_jax/weights/`.

    Raises:
      UserError: values do not fit float16.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    records = {}
    for name, stage in artefact.stages.items():
        summary = stage.training | {"steps": stage.steps, "images_seen": stage.images_seen}
        file = f"{name}.safetensors"
        records[name] = _write_weights(directory, name, stage.params, summary, dtype, file=file)
    _write_config(
        directory, artefact.config, artefact.encoder_identity, artefact.tokenizer_hash, records
    )


def _write_weights(
    directory: epath.Path,
    stage_name: str,
    params: Params,
    summary: Mapping[str, Any],
    dtype: str,
    read: Callable[[Any], np.ndarray] = np.asarray,
    file: str | None = None,
) -> dict[str, Any]:
    """Writes a safetensors file and returns its record for `config.json`.

    `file` is its name; None: one of its own, with the hash, so that no other file is replaced.
    """
    flat = flatten_params(params)
    # A single metadata entry: the order of several is not fixed, and the hash would change.
    metadata = {"format": TENSOR_FORMAT}
    # An object store cannot rename, but shows a file only once it is complete.
    remote = is_remote(directory)
    place = temporary_beside(directory / f"{stage_name}-weights")
    if remote:
        # The hash is not known before the file is written.
        place = directory / (file or f"{stage_name}-{uuid.uuid4().hex[:12]}.safetensors")
    try:
        digest = write_tensors(place, flat, dtype, metadata, read)
        if not remote:
            place = place.replace(directory / (file or f"{stage_name}-{digest[:12]}.safetensors"))
    except UserError as error:
        place.unlink(missing_ok=True)
        raise UserError(f"{stage_name}: {error}") from error
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    return {
        "file": place.name,
        "sha256": digest,
        "dtype": dtype,
        "num_parameters": sum(math.prod(value.shape) for value in flat.values()),
        "images_seen": int(summary["images_seen"]),
        "steps": int(summary["steps"]),
        "training": dict(summary),
    }


def _write_config(
    directory: epath.Path,
    config: CascadeConfig,
    encoder_identity: str,
    tokenizer_hash: str,
    records: Mapping[str, Any],
) -> None:
    content = {
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "cascade": to_json_dict(config),
        "text": {"encoder_identity": encoder_identity, "tokenizer_hash": tokenizer_hash},
        "stages": records,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(directory / CONFIG_FILE, text.encode("utf-8"))


def check_params(stage_name: str, params: Params, expected: Params) -> None:
    """Compares names and shapes with those of the network (`expected`: arrays or their shapes).

    Raises:
      UserError: names the first differences.
    """
    have = {path: tuple(np.shape(value)) for path, value in flatten_params(params).items()}
    want = {path: tuple(value.shape) for path, value in flatten_params(expected).items()}
    problems = [f"{path} is missing" for path in sorted(want.keys() - have.keys())]
    problems += [f"{path} is not a parameter" for path in sorted(have.keys() - want.keys())]
    problems += [
        f"{path} is {have[path]} and should be {want[path]}"
        for path in sorted(want.keys() & have.keys())
        if have[path] != want[path]
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(
            f"the weights of stage {stage_name!r} do not fit its configuration: "
            f"{'; '.join(problems[:3])}{more}. They were written by another version of the "
            "package or for another model"
        )


def flatten_params(params: Params) -> dict[str, Any]:
    """The parameters by their "/"-joined paths."""
    from flax.traverse_util import flatten_dict

    return flatten_dict(params, sep="/")
