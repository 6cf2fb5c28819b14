"""Converts the encoder of a T5 that was published only as `pytorch_model.bin` to safetensors.

    pip install 'imagen-jax[convert]'
    python -m imagen_jax.cli.convert_t5 --source=google/t5-v1_1-xxl --out=/models/t5-v1_1-xxl
    python train.py --config=CONFIG.py --config.text.encoder=/models/t5-v1_1-xxl ...

Torch files contain pickles; only tensors are read from them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.flags import DEFINE_enum, DEFINE_float, DEFINE_string, FlagValues

from imagen_jax.cli import common
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig

TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
_COPIED = ("config.json", "spiece.model", "tokenizer.json", "tokenizer_config.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, see `common.run`."""
    return common.run(__doc__, define_flags, convert_and_list, arguments)


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of this command."""
    DEFINE_string(
        "source",
        None,
        "Directory, or id on the Hugging Face hub. Default: config.text.encoder of --config.",
        flag_values=flags,
    )
    DEFINE_string("out", None, "Directory for the safetensors. Needed.", flag_values=flags)
    DEFINE_enum(
        "dtype", "bfloat16", ["bfloat16", "float32"], "Of the written weights.", flag_values=flags
    )
    DEFINE_float(
        "shard_gb", 4.0, "Size of the largest file in GB.", lower_bound=1e-6, flag_values=flags
    )


def convert_and_list(flags: FlagValues, config: CascadeConfig | None) -> None:
    """Converts what the flags name and lists the files."""
    source = flags.source
    if source is None:
        if config is None:
            raise UserError("--source is needed (or --config, for its config.text.encoder)")
        source = config.text.encoder
    if flags.out is None:
        raise UserError("--out is needed: the directory for the safetensors")
    convert(source, Path(flags.out), flags.dtype, int(flags.shard_gb * 1e9))
    for path in sorted(Path(flags.out).iterdir()):
        print(f"{path.stat().st_size / 1e6:10.2f} MB  {path}")


def convert(source: str, out: Path, dtype: str, shard_bytes: int) -> None:
    """Writes an encoder's directory with safetensors, tokenizer, config and SHA256SUMS.

    Files are written one at a time, so no more than `shard_bytes` (or the largest file of the
    source, in the format of torch before 1.6) is in memory.

    Args:
      source: a directory or hub id.
      out: made if missing; must hold no weights yet.
      dtype: "bfloat16" or "float32".
      shard_bytes: of the largest file.

    Raises:
      UserError: torch is missing, the source is not a T5, or lacks a tensor.
    """
    torch = _torch()
    from safetensors.torch import save_file

    from imagen_jax.files import explain_full_disk
    from imagen_jax.text import hf_files, t5_load

    directory = hf_files.find_directory(source, hf_files.TORCH_FILES)
    config = t5_load.read_config(directory)
    if list(out.glob("*.safetensors")):
        raise UserError(f"--out={out} holds weights already; give a new directory")
    with explain_full_disk(out):
        out.mkdir(parents=True, exist_ok=True)
        wanted = t5_load.tensor_names(config)
        sizes: dict[str, int] = {}
        groups: list[list[str]] = [[]]
        for name, tensor in _tensors(torch, directory):
            name = t5_load.canonical_name(name)
            if name in wanted and name not in sizes:
                _check_plain(torch, f"{directory}: {name!r}", tensor)
                size = tensor.numel() * getattr(torch, dtype).itemsize
                if groups[-1] and sum(sizes[n] for n in groups[-1]) + size > shard_bytes:
                    groups.append([])
                groups[-1].append(name)
                sizes[name] = size
        if missing := sorted(wanted - sizes.keys()):
            raise UserError(f"{directory}: tensor {missing[0]!r} (of {len(missing)}) is missing.")

        names, weight_map = [], {}
        for number, group in enumerate(groups, 1):
            single = len(groups) == 1
            name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            name = hf_files.WEIGHTS if single else name
            part = {}
            for key, tensor in _tensors(torch, directory):
                key = t5_load.canonical_name(key)
                if key in group and key not in part:
                    part[key] = tensor.to(getattr(torch, dtype)).contiguous()
            save_file(part, out / name, metadata={"format": "pt"})
            (out / name).chmod(0o644)  # safetensors writes files that only their owner reads.
            names.append(name)
            weight_map |= dict.fromkeys(group, name)
            print(f"wrote {name} ({number} of {len(groups)})", flush=True)
        if len(groups) > 1:
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            (out / hf_files.INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
            names.append(hf_files.INDEX)
        for name in _COPIED:
            if (directory / name).is_file():
                shutil.copyfile(directory / name, out / name)
                names.append(name)
        hf_files.write_checksums(out, names)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "converting torch files needs torch: pip install 'imagen-jax[convert]'"
        ) from error
    return torch


def _check_plain(torch: Any, what: str, tensor: Any) -> None:
    """Raises UserError unless an entry of a checkpoint is a tensor as it was trained."""
    dtype = getattr(tensor, "dtype", type(tensor).__name__)
    if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise UserError(
            f"{what} is stored as {dtype}: quantized weights are not converted. Fetch those in "
            "float32, bfloat16 or float16"
        )


def _tensors(torch: Any, directory: Path) -> Iterator[tuple[str, Any]]:
    """Name and tensor of each entry, mapped from the file where its format allows."""
    # Imported here, since it imports more than `--help` should wait for.
    from imagen_jax.foreign_files import check_file_name, check_regular, read_json_object

    if (directory / TORCH_INDEX).is_file():
        index = directory / TORCH_INDEX
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{index} has no weight_map: fetch the file again")
        what = f"{index}: a file of weight_map"
        files = sorted({directory / check_file_name(name, what) for name in weight_map.values()})
    else:
        files = [directory / TORCH_WEIGHTS]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} does not exist: there is nothing to convert in {directory}")
        check_regular(file)
        try:
            try:
                entries = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # The format before torch 1.6 cannot be mapped.
                entries = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # Torch has no class of its own for damaged files.
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{file} cannot be read ({reason}): fetch it again") from error
        if not isinstance(entries, dict):
            raise UserError(
                f"{file} holds a {type(entries).__name__} and no dict of tensors: it is no "
                "checkpoint of a T5"
            )
        yield from entries.items()


if __name__ == "__main__":
    sys.exit(main())
