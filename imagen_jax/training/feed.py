"""Turns the host's pictures and captions into global, sharded batches."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from imagen_jax.data.buckets import BucketedSource
from imagen_jax.data.identity import Identity, describe, identify
from imagen_jax.data.pipeline import LeftOut
from imagen_jax.data.source import Source
from imagen_jax.data.warn_once import warn_once
from imagen_jax.errors import UserError
from imagen_jax.parallel.agreement import Agreement
from imagen_jax.parallel.placement import BatchRows
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import TextSource
from imagen_jax.types import Batch


def device_batches(
    host_batches: Iterator[dict[str, Any]], encoder: TextSource, rows: BatchRows
) -> Generator[tuple[Batch, LeftOut], None, None]:
    """Turns captions into embeddings on the mesh and puts pictures (uint8) on it.

    Works ahead: when a batch is yielded, the encoding of the next batch is dispatched, and a thread
    prepares the tokens (or reads the stored embeddings) of the one after that. Only the caller's
    thread dispatches programs, so that all processes of a job do it in the same order. Close this
    generator before `host_batches`, since its thread reads ahead.

    Yields:
      The batch, and what was left out of this process's rows.

    Raises:
      UserError: a process that reads the data has ended.
    """

    def read() -> tuple[dict[str, Any], Any] | None:
        with explain_lost_worker():
            host = next(host_batches, None)
        for kind, message in host.get("messages", ()) if host else ():
            warn_once(kind, message)
        return None if host is None else (host, encoder.prepare(host["captions"]))

    def dispatch(host: dict[str, Any], prepared: Any) -> tuple[Batch, LeftOut]:
        text = encoder.embed(prepared, rows.global_array)
        return Batch(image=rows.global_array(host["image"]), text=text), host["left_out"]

    with ThreadPoolExecutor(1, thread_name_prefix="text") as thread:
        ready, coming = None, thread.submit(read)
        while ready is not None or coming is not None:
            found = coming.result() if coming is not None else None
            coming = None if found is None else thread.submit(read)
            following = None if found is None else dispatch(*found)
            if ready is not None:
                yield ready
            ready = following


@contextlib.contextmanager
def explain_lost_worker() -> Iterator[None]:
    """Turns Grain's error for a data worker that ended into a UserError."""
    try:
        yield
    except RuntimeError as error:
        match = re.search(r"Worker process was terminated.* exit code (-?\d+)", str(error))
        if match is None:
            raise
        code = int(match[1])
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        raise UserError(
            f"a process that reads the data {how}. If the machine ran out of memory, set a lower "
            "config.data.num_workers. The same command continues from the last save"
        ) from error


def picture_shapes(stage: Stage, source: Source) -> list[tuple[int, int]]:
    """The shapes (H, W) of a stage's training batches: one, or one for each bucket."""
    size = stage.config.train_size
    if isinstance(source, BucketedSource) and not stage.config.train.crop_size:
        return list(source.shapes)
    return [(size, size)]


def identify_data(sources: dict[str, Source | None], agreement: Agreement) -> dict[str, Identity]:
    """The identity of the sources' sets, by split; None has none.

    Raises:
      UserError: the processes have different sets.
    """
    here = {split: identify(source) for split, source in sources.items() if source is not None}
    for process, other in enumerate(found := agreement.gather(here)):
        for split in here:
            if other[split] != found[0][split]:
                raise UserError(
                    f"process {process} has other pictures than process 0 for the split {split}: "
                    f"{describe(other[split])}, not {describe(found[0][split])}. Give all "
                    "processes the same data"
                )
    return here


def check_same_buckets(sources: Sequence[Source | None], agreement: Agreement) -> None:
    """Raises UserError unless all processes have the same pictures in the same buckets."""
    here = [source.digest for source in sources if isinstance(source, BucketedSource)]
    if not here:
        return
    for process, other in enumerate(digests := agreement.gather(here)):
        if other != digests[0]:
            raise UserError(
                f"process {process} has other pictures, or of other sizes, than process 0: give "
                "all processes the same data, and delete the folder .imagen_jax in it"
            )
