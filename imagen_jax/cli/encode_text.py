"""Encodes the captions of a data set once, for training runs to read.

    python -m imagen_jax.cli.encode_text --config=configs/emoji.py --out=/data/emoji-text
    python train.py --config=configs/emoji.py --config.data.embeddings=/data/emoji-text ...

If it is killed or interrupted, the same command continues. For several machines, give each
`--num_processes=N --process_id=I` (or `--distributed` on a TPU pod or under SLURM) and a directory
that all of them see; each encodes its own shards with the encoder on its own devices.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl.flags import DEFINE_bool, DEFINE_integer, DEFINE_string, FlagValues

from imagen_jax.cli import common, config_flag
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, see `common.run`."""
    return common.run(__doc__, define_flags, encode_or_verify, arguments)


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of this command."""
    DEFINE_string("out", None, "Directory of the store. Needed.", flag_values=flags)
    DEFINE_string(
        "dtype",
        None,
        "float32, bfloat16 or int8. Default: that of the encoder, which is exact.",
        flag_values=flags,
    )
    DEFINE_integer(
        "num_items",
        None,
        "Training items to encode. Default: all. Needed for endless sources.",
        lower_bound=1,
        flag_values=flags,
    )
    DEFINE_integer(
        "batch_size",
        64,
        "Captions per batch, over the devices of this process.",
        lower_bound=1,
        flag_values=flags,
    )
    DEFINE_integer(
        "shard_size",
        4096,
        "Items per shard. A process that is killed loses at most one shard of work.",
        lower_bound=1,
        flag_values=flags,
    )
    DEFINE_bool(
        "by_length",
        False,
        "Batch captions of similar length: several times faster, and equal up to rounding.",
        flag_values=flags,
    )
    DEFINE_bool(
        "verify",
        False,
        "Compare the store in --out with its checksums, and stop.",
        flag_values=flags,
    )
    DEFINE_bool(
        "distributed",
        False,
        "Take the number of this process from the TPU pod or the SLURM job.",
        flag_values=flags,
    )
    DEFINE_integer("num_processes", None, "Number of processes.", flag_values=flags)
    DEFINE_integer("process_id", None, "Number of this process, from 0.", flag_values=flags)


def encode_or_verify(flags: FlagValues, config: CascadeConfig | None) -> None:
    """Does what the flags ask for."""
    if flags.out is None:
        raise UserError("--out is needed: the directory of the store")
    if flags.verify:
        verify(flags.out)
    else:
        encode(flags, config_flag.require(config))


def verify(directory: str) -> None:
    """Reads a whole store. Raises UserError if a shard is not what was written."""
    from imagen_jax.stores import store as record_store
    from imagen_jax.stores.manifest import read_manifest

    if problems := record_store.verify(directory):
        raise UserError(f"{directory} is damaged:\n" + "\n".join(f"  {line}" for line in problems))
    print(f"{directory}: {len(read_manifest(directory).shards)} shards are whole")


def encode(flags: FlagValues, config: CascadeConfig) -> None:
    """Writes this process's part of the store."""
    import jax

    from imagen_jax.cli.common import setup_jax
    from imagen_jax.progress import ProgressLine
    from imagen_jax.text import encode_captions as job
    from imagen_jax.text.encoder import load_encoder

    if (flags.num_processes is None) != (flags.process_id is None):
        raise UserError("--num_processes and --process_id belong together")
    setup_jax()
    index, count = flags.process_id or 0, flags.num_processes or 1
    if flags.distributed:
        # The other processes may need hours more; a finished one waits for them.
        jax.distributed.initialize(shutdown_timeout_seconds=7 * 24 * 3600)
        index, count = jax.process_index(), jax.process_count()
    captions = caption_set(flags, config)
    mesh = job.local_mesh()
    encoder = load_encoder(config.text, mesh=mesh)
    print(
        f"process {index} of {count}: {captions.num_train:,} training and "
        f"{captions.num_held_out:,} held-out items of {config.data.source!r}, encoder "
        f"{encoder.identity[:12]} on {mesh.size} device(s)",
        flush=True,
    )
    start = time.monotonic()
    manifest = job.encode_captions(
        flags.out,
        captions,
        encoder,
        config.text,
        mesh,
        dtype=flags.dtype or encoder.config.dtype,
        batch_size=flags.batch_size,
        shard_size=flags.shard_size,
        by_length=flags.by_length,
        process_index=index,
        process_count=count,
        progress=ProgressLine("items"),
    )
    print(f"done in {time.monotonic() - start:.0f} s", flush=True)
    if manifest is None:
        print("other processes have shards to make; the last one completes the store")
    else:
        print(job.describe(manifest))


def caption_set(flags: FlagValues, config: CascadeConfig):
    """The captions that training and validation of this configuration read."""
    from imagen_jax.data.open import load_source
    from imagen_jax.text.encode_captions import CaptionSet

    size = min(stage.resolution for stage in config.stages.values())
    train, held_out = (load_source(config.data, split, size) for split in ("train", "held_out"))
    if train.endless and flags.num_items is None:
        raise UserError(
            f"config.data.source={config.data.source!r} is endless: give --num_items, the steps "
            "times the batch size of the longest run"
        )
    validated = max(stage.train.validation_images for stage in config.stages.values())
    return CaptionSet(
        name=config.data.source,
        train=train,
        held_out=held_out,
        num_train=min(len(train), flags.num_items or len(train)),
        num_held_out=min(len(held_out), validated) if held_out.endless else len(held_out),
    )


if __name__ == "__main__":
    sys.exit(main())
