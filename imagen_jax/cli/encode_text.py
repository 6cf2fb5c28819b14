"""Encodes the captions of a data set once, for training runs to read.

    python -m imagen_jax.cli.encode_text --config=configs/emoji.py --out=/data/emoji-text
    python train.py --config=configs/emoji.py --config.data.embeddings=/data/emoji-text ...

Killed or interrupted, the same command goes on. For several machines, give each
`--num_processes=N --process_id=I` (or `--distributed` on a TPU pod or under SLURM) and a directory
that all of them see; each encodes its own shards with the encoder on its own devices.
"""

from __future__ import annotations

import time

from absl import flags

from imagen_jax.cli.common import define_config_flag, load_config_flag, run_command
from imagen_jax.config import CascadeConfig
from imagen_jax.errors import UserError

define_config_flag()
OUT = flags.DEFINE_string("out", None, "Directory of the store; needed.")
DTYPE = flags.DEFINE_string(
    "dtype", None, "float32, bfloat16 or int8 (default: the encoder's own, which is exact)."
)
NUM_ITEMS = flags.DEFINE_integer(
    "num_items", None, "Training items to encode (default: all; needed for endless sources)."
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Captions a batch, over the devices of this process."
)
SHARD_SIZE = flags.DEFINE_integer("shard_size", 4096, "Items a shard: what a kill can cost.")
BY_LENGTH = flags.DEFINE_bool(
    "by_length", False, "Batch captions of like length: several times faster, equal to rounding."
)
VERIFY = flags.DEFINE_bool(
    "verify", False, "Compare a store in --out with its checksums, and stop."
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Take this process's number from the TPU pod or the SLURM job."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def main(argv: list[str]) -> None:
    """Encodes, or verifies, what the flags ask for."""
    del argv
    if OUT.value is None:
        raise UserError("--out is needed: the directory of the store")
    if VERIFY.value:
        verify(OUT.value)
        return
    config = load_config_flag()
    if config is None:
        raise UserError("--config is needed: one of configs/*.py, or your own")
    encode(config)


def verify(directory: str) -> None:
    """Reads a whole store. Raises UserError if a shard is not what was written."""
    from imagen_jax.stores import store as record_store
    from imagen_jax.stores.manifest import read_manifest

    if problems := record_store.verify(directory):
        raise UserError(f"{directory} is damaged:\n" + "\n".join(f"  {line}" for line in problems))
    print(f"{directory}: {len(read_manifest(directory).shards)} shards are whole")


def encode(config: CascadeConfig) -> None:
    """Writes this process's part of the store."""
    import jax

    from imagen_jax.cli.common import setup_jax
    from imagen_jax.progress import ProgressLine
    from imagen_jax.text import encode_captions as job
    from imagen_jax.text.encoder import load_encoder

    if (NUM_PROCESSES.value is None) != (PROCESS_ID.value is None):
        raise UserError("--num_processes and --process_id belong together")
    setup_jax()
    index, count = PROCESS_ID.value or 0, NUM_PROCESSES.value or 1
    if DISTRIBUTED.value:
        # The others may need hours more: whoever is done waits for them at the end.
        jax.distributed.initialize(shutdown_timeout_seconds=7 * 24 * 3600)
        index, count = jax.process_index(), jax.process_count()
    captions = caption_set(config)
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
        OUT.value,
        captions,
        encoder,
        config.text,
        mesh,
        dtype=DTYPE.value or encoder.config.dtype,
        batch_size=BATCH_SIZE.value,
        shard_size=SHARD_SIZE.value,
        by_length=BY_LENGTH.value,
        process_index=index,
        process_count=count,
        progress=ProgressLine("items"),
    )
    print(f"done in {time.monotonic() - start:.0f} s", flush=True)
    if manifest is None:
        print("other processes have shards to make; the last one completes the store")
    else:
        print(job.describe(manifest))


def caption_set(config: CascadeConfig):
    """The captions that training and validation of this configuration read."""
    from imagen_jax.data.open import load_source
    from imagen_jax.text.encode_captions import CaptionSet

    size = min(stage.resolution for stage in config.stages.values())
    train, held_out = (load_source(config.data, split, size) for split in ("train", "held_out"))
    if train.endless and NUM_ITEMS.value is None:
        raise UserError(
            f"config.data.source={config.data.source!r} is endless: give --num_items, the steps "
            "times the batch size of the longest run"
        )
    for flag in (NUM_ITEMS, SHARD_SIZE):
        if flag.value is not None and flag.value < 1:
            raise UserError(f"--{flag.name}={flag.value} must be at least 1")
    validated = max(stage.train.validation_images for stage in config.stages.values())
    return CaptionSet(
        name=config.data.source,
        train=train,
        held_out=held_out,
        num_train=min(len(train), NUM_ITEMS.value or len(train)),
        num_held_out=min(len(held_out), validated) if held_out.endless else len(held_out),
    )


if __name__ == "__main__":
    run_command(main)
