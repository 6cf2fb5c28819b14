"""Hugging Face model directories: finding them, their hashes, and loading tensors to shards."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from imagen_jax.errors import UserError, brief
from imagen_jax.foreign_files import (
    MAX_JSON_BYTES,
    check_file_name,
    check_regular,
    explain_damage,
    read_bytes,
    read_json_object,
)
from imagen_jax.types import Array, Params

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHECKSUMS = "SHA256SUMS"
# Files of a repository that a text encoder needs. The repository may also hold the same weights in
# other formats.
_FILES = (
    "config.json",
    "model*.safetensors",
    INDEX,
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    CHECKSUMS,
)
# Larger than any encoder. Beyond them a mistyped config.json ends the memory.
MAX_LAYERS = 1000
MAX_SIZE = 2**31 - 1
# Types of safetensors that hold weights as they were trained.
_FLOATS = ("F64", "F32", "F16", "BF16")
TORCH_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


def find_directory(name: str, more_files: Sequence[str] = ()) -> Path:
    """The local directory of a model.

    Args:
      name: a directory, or the id of a repository on the Hugging Face hub ("google/t5-v1_1-xl",
        followed by "@revision" for another branch than the main one), which is fetched once.
      more_files: patterns of files to fetch beyond those that `load_encoder` reads.

    Raises:
      UserError: the directory does not exist, and the hub lacks the repository or cannot be
        reached.
    """
    directory = local_directory(name)
    if directory is not None:
        return directory
    if not _HUB_ID.fullmatch(name) or name.startswith(("./", "../", "~")):
        raise UserError(
            f"text.encoder is {brief(name)}: neither 'embedded' nor a directory that exists nor "
            "the id of a Hugging Face repository."
        )
    # Imported here: it takes a second, and most runs need no network.
    import huggingface_hub

    repository, _, revision = name.partition("@")
    try:
        # Without a network it returns the files of an earlier call.
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision or None, allow_patterns=[*_FILES, *more_files]
            )
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"text.encoder is {name!r}: there is no such directory, and the repository could not "
            f"be fetched from the Hugging Face hub ({reason[:300]}). For a machine without network "
            f"run `hf download {repository} --local-dir=DIR` elsewhere, copy DIR and give its path."
        ) from error


def local_directory(name: str) -> Path | None:
    """The directory of that name, None if there is none."""
    try:
        directory = Path(name).expanduser()
        return directory if name and directory.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, ~ of nobody, a NUL
        return None


def check_directory(directory: Path) -> None:
    """Raises UserError if a file that may be read is a device, a pipe or a dangling link."""
    for path in sorted(directory.iterdir()):
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in _FILES):
            check_regular(path, "fetch the directory again")


def read_fields(
    kind: type, names: Mapping[str, str], values: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """The fields of a config dataclass that a `config.json` gives.

    Args:
      kind: the dataclass; whole numbers are sizes, floats are small positive numbers.
      names: of the entries of the file, by the name of the field.
      values: content of the file.
      path: of the file, for messages.

    Raises:
      UserError: a value is of another type than the field's default, or no such number.
    """
    found = {}
    for field in dataclasses.fields(kind):
        name = names.get(field.name)
        if name is None or name not in values:
            continue
        value, expected = values[name], type(field.default)
        what, most = "a string", math.inf
        if expected is int:
            most = MAX_LAYERS if field.name == "num_layers" else MAX_SIZE
            what = f"a whole number from 1 to {most}"
        elif expected is float:
            what = "a number between 0 and 1"
        if type(value) is not expected or not (
            expected is str or (1 <= value <= most if expected is int else 0 < value < 1)
        ):
            raise UserError(f"{path} has {name} {brief(value)}: it must be {what}.")
        found[field.name] = value
    return found


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory, in a fixed order.

    Raises:
      UserError: there are none, or a file that the index names is missing.
    """
    index = directory / INDEX
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not index.is_file():
        raise UserError(_no_weights(directory))
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index} has no weight_map: fetch the file again.")
    what = f"{index}: a file of weight_map"
    files = sorted({directory / check_file_name(name, what) for name in names.values()})
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, although {index.name} names it: fetch it again.")
    return files


def _no_weights(directory: Path) -> str:
    """What a directory without readable weights holds instead, and what to do."""
    if shards := sorted(directory.glob("*.safetensors")):
        return (
            f"{directory} holds {shards[0].name} ({len(shards)} such files), but neither {WEIGHTS} "
            f"nor {INDEX}, which lists the files of a model in several parts: fetch {INDEX} too."
        )
    if list(directory.glob(TORCH_FILES[0])):
        return (
            f"{directory} holds pytorch_model.bin and no {WEIGHTS}. Convert it first: "
            f"python -m imagen_jax.cli.convert_t5 --source={directory} --out=DIR"
        )
    return (
        f"{directory} holds neither {WEIGHTS} nor {INDEX}: fetch the weights in the safetensors "
        "format."
    )


# --- tensors ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter and its tensors in the files.

    Attributes:
      path: names of the parameter from the root of the tree.
      keys: names in the files; one per layer for stacked parameters.
      file_shape: of each tensor in the files.
      shape: of the parameter without the layer axis. Linear layers are transposed first.
      stacked: whether the parameter has a layer axis.
      transposed: whether `shape` is that of the transposed tensor.
    """

    path: tuple[str, ...]
    keys: tuple[str, ...]
    file_shape: tuple[int, ...]
    shape: tuple[int, ...]
    stacked: bool
    transposed: bool

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape of the parameter, with the layer axis."""
        return (len(self.keys), *self.shape) if self.stacked else self.shape


def single_leaf(path: str, key: str, shape: tuple[int, ...]) -> Leaf:
    """A parameter that is one tensor of the same shape; `path` is joined by "/"."""
    return Leaf(tuple(path.split("/")), (key,), shape, shape, stacked=False, transposed=False)


def stacked_leaf(
    path: str, keys: Sequence[str], file_shape: tuple[int, ...], shape: tuple[int, ...]
) -> Leaf:
    """A parameter of all layers; matrices are transposed, `path` is joined by "/"."""
    transposed = len(file_shape) == 2
    return Leaf(tuple(path.split("/")), tuple(keys), file_shape, shape, True, transposed)


def abstract_params(leaves: Sequence[Leaf], dtype: str) -> Params:
    """Shapes and dtypes of the parameters that `load_params` makes."""
    params: Params = {}
    for leaf in leaves:
        put(params, leaf.path, jax.ShapeDtypeStruct(leaf.full_shape, jnp.dtype(dtype)))
    return params


def check_tensors(
    directory: Path,
    files: dict[str, Any],
    leaves: Sequence[Leaf],
    ignored: re.Pattern[str],
    what: str,
) -> None:
    """Compares the tensors of a directory with those of the leaves.

    Args:
      directory: for messages.
      files: of `open_tensors`.
      leaves: the parameters to read.
      ignored: matches the names of further tensors that the directory may hold.
      what: the network, for messages.

    Raises:
      UserError: a tensor is missing, quantized or of a wrong shape, or an unknown one is present.
    """
    expected = {key for leaf in leaves for key in leaf.keys}
    for key in sorted(expected & files.keys()):
        dtype = files[key].get_slice(key).get_dtype()
        if dtype not in _FLOATS:
            raise UserError(
                f"{directory}: {key!r} is stored as {dtype}: quantized weights are not read. Fetch "
                "those in float32, bfloat16 or float16."
            )
    if missing := sorted(expected - files.keys()):
        raise UserError(
            f"{directory}: tensor {missing[0]!r} is missing ({len(missing)} are missing in all)."
        )
    unknown = [key for key in files if key not in expected and not ignored.match(key)]
    if unknown:
        raise UserError(
            f"{directory}: tensor {brief(unknown[0])} ({len(unknown)} in all) does not belong to "
            f"{what}: config.json and the weights are not of the same model."
        )
    for leaf in leaves:
        for key in leaf.keys:
            shape = tuple(files[key].get_slice(key).get_shape())
            if shape != leaf.file_shape:
                raise UserError(
                    f"{directory}: {key!r} has shape {shape}, but config.json implies "
                    f"{leaf.file_shape}."
                )


def unreadable(path: Path, error: Exception) -> str:
    """The message for a file that a library could not read."""
    with open(path, "rb") as file:
        start = file.read(200)
    return f"{path} cannot be read ({explain_damage(start, error)}): fetch it again."


@contextlib.contextmanager
def open_tensors(directory: Path) -> Iterator[dict[str, Any]]:
    """The open safetensors file of each tensor, by name; only headers are read.

    Raises:
      UserError: a file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    with contextlib.ExitStack() as stack:
        files: dict[str, Any] = {}
        for path in weight_files(directory):
            try:
                file = stack.enter_context(safe_open(path, framework="np"))
            except (SafetensorError, OSError) as error:
                raise UserError(unreadable(path, error)) from error
            files.update(dict.fromkeys(file.keys(), file))
        yield files


def load_params(
    files: dict[str, Any], leaves: Sequence[Leaf], dtype: str, shardings: Params | None = None
) -> Params:
    """Reads the parameters one after the other, for each device only its own part.

    Args:
      files: of `open_tensors`.
      leaves: the parameters to read.
      dtype: of the result.
      shardings: a tree of shardings like the result, over any number of processes; None puts the
        parameters on the default device.
    """
    params: Params = {}
    for leaf in leaves:
        sharding = (
            jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            if shardings is None
            else get(shardings, leaf.path)
        )
        value = _load_leaf(files, leaf, dtype, sharding)
        # Copies to a device are asynchronous: without waiting they would pile up on the host.
        put(params, leaf.path, jax.block_until_ready(value))
    return params


def _load_leaf(files: dict[str, Any], leaf: Leaf, dtype: str, sharding: Sharding) -> Array:
    shape = leaf.full_shape

    @functools.cache  # several devices may hold the same part
    def read(*bounds: tuple[int, int]) -> np.ndarray:
        layers = range(*bounds[0]) if leaf.stacked else range(1)
        part = bounds[1:] if leaf.stacked else bounds
        out = np.empty((len(layers), *(stop - start for start, stop in part)), jnp.dtype(dtype))
        for row, layer in enumerate(layers):
            out[row] = _read_part(files[leaf.keys[layer]], leaf, leaf.keys[layer], part)
        return out if leaf.stacked else out[0]

    def callback(index: tuple[slice, ...]) -> np.ndarray:
        return read(*(part.indices(size)[:2] for part, size in zip(index, shape, strict=True)))

    return jax.make_array_from_callback(shape, sharding, callback)


def _read_part(file: Any, leaf: Leaf, key: str, part: Sequence[tuple[int, int]]) -> np.ndarray:
    """The part `[start, stop)` of each axis of the parameter; reads at most whole heads more."""
    # Each group of axes of the parameter is one axis in the file, such as (heads, width).
    groups, axis = [], 0
    for size in leaf.file_shape[::-1] if leaf.transposed else leaf.file_shape:
        end = axis + 1
        while math.prod(leaf.shape[axis:end]) < size:
            end += 1
        groups.append(range(axis, end))
        axis = end
    ranges, inner = [], []
    for group in groups:
        width = math.prod(leaf.shape[a] for a in group[1:])
        start, stop = part[group[0]]
        ranges.append(slice(start * width, stop * width))
        inner += [slice(None), *(slice(*part[a]) for a in group[1:])]
    tensor = file.get_slice(key)[tuple(ranges[::-1] if leaf.transposed else ranges)]
    tensor = tensor.T if leaf.transposed else tensor
    whole = [
        (part[a][1] - part[a][0]) if a == group[0] else leaf.shape[a]
        for group in groups
        for a in group
    ]
    return tensor.reshape(whole)[tuple(inner)]


def put(tree: Params, path: tuple[str, ...], value: Any) -> None:
    """Sets `tree[a][b]...`; creates missing levels."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def get(tree: Params, path: tuple[str, ...]) -> Any:
    """`tree[a][b]...`."""
    for name in path:
        tree = tree[name]
    return tree


# --- hashes -----------------------------------------------------------------------------------


def identity(directory: Path, architecture: Any) -> str:
    """SHA-256 (hex) of the weight files and the architecture, which decide the output.

    Args:
      directory: of the weights.
      architecture: a config dataclass, hashed without its compute `dtype`.
    """
    shape = dataclasses.asdict(dataclasses.replace(architecture, dtype=""))
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for path in weight_files(directory):
        digest.update(file_hash(path).encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hex; a process reads an unchanged file once."""
    status = path.stat()
    return _file_hash(os.fspath(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _file_hash(path: str, size: int, time: int) -> str:
    del size, time
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(directory: Path, names: Sequence[str]) -> None:
    """Writes `SHA256SUMS` in the format of the `sha256sum` command."""
    lines = [f"{file_hash(directory / name)}  {name}\n" for name in names]
    (directory / CHECKSUMS).write_text("".join(lines))


def check_checksums(directory: Path) -> None:
    """Compares the files with `SHA256SUMS`, if the directory has one.

    Raises:
      UserError: a file that it lists is missing or has changed, or it is no such list.
    """
    path = directory / CHECKSUMS
    if not path.is_file():
        return
    for line in read_bytes(path, at_most=MAX_JSON_BYTES).decode("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise UserError(f"{path} has the line {brief(line)}; sha256sum writes HASH  NAME.")
        file = directory / check_file_name(match[2], f"{path}: a file")
        if not file.is_file() or file_hash(file) != match[1]:
            raise UserError(
                f"{file} is missing or does not have the hash that {path.name} lists: fetch or "
                "install it again."
            )
