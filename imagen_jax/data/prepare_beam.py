"""`prepare_data` on Apache Beam: the workers of any runner write the shards of one store.

The pipeline carries shard numbers and manifest entries, never pictures: a worker opens the source
by its path and writes the whole shard to its final path. A shard may be written twice, at any time,
with the same result. So the store has the bytes that `prepare` writes, even if the runner retries
work or the pipeline is started again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from imagen_jax.config import DataConfig
from imagen_jax.data.prepare import open_records, plan_store, reader
from imagen_jax.data.records import Records
from imagen_jax.errors import UserError
from imagen_jax.files import write_atomically
from imagen_jax.stores.manifest import UNFINISHED, Manifest, Shard
from imagen_jax.stores.writer import StorePlan, begin_store, finish_store, make_shard

# Folder for the messages of failed shards, since not every runner passes errors on.
_FAILED = "failed"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a worker needs to write a shard.

    Attributes:
      plan: of the store.
      config: of the data.
      image_size, num_threads: see `prepare`.
      num_records: length of the source on the machine that started the pipeline.
    """

    plan: StorePlan
    config: DataConfig
    image_size: int
    num_threads: int
    num_records: int

    def open(self) -> Records:
        """Opens the source on a worker. Raises UserError if its length differs there."""
        records = open_records(self.config, self.image_size)
        if len(records) != self.num_records:
            raise UserError(
                f"a worker finds {len(records):,} items in {self.config.path}, and the machine "
                f"that started the pipeline found {self.num_records:,}; all machines must see the "
                "same files under the same path"
            )
        return records


def prepare_on_beam(
    config: DataConfig,
    directory: str,
    *,
    runner: str,
    options: Sequence[str] = (),
    image_size: int = 64,
    max_items: int = 0,
    shard_size: int = 10_000,
    num_threads: int = 4,
) -> Manifest | None:
    """Writes the same store as `prepare`, byte for byte, with a Beam pipeline.

    The directory and `config.path` must refer to the same files here and on every worker.

    Args:
      config, directory, image_size, max_items, shard_size: see `prepare`.
      runner: Beam's name of the runner, such as "DirectRunner" or "DataflowRunner".
      options: of Beam and the runner, as on a command line ("--region=...").
      num_threads: threads that read and check, for each shard that a worker writes.

    Returns:
      The manifest, or None if the pipeline was only started (--no_wait_until_finish).

    Raises:
      UserError: Beam or a dependency of the runner is not installed; the runner or its options are
        wrong; a shard cannot be written; or as in `prepare`.
    """
    beam = import_beam()
    pipeline = _pipeline(runner, options)
    directory = _absolute(directory)
    config = dataclasses.replace(config, path=_absolute(config.path))
    records = open_records(config, image_size)
    plan = plan_store(config, records, directory, image_size, max_items, shard_size)
    finished = begin_store(plan)
    if finished is not None:
        return finished
    _failed(plan).rmtree(missing_ok=True)
    work = Work(plan, config, image_size, num_threads, len(records))
    from apache_beam.runners.runner import PipelineState
    from apache_beam.utils.shared import Shared

    try:
        with pipeline:
            (
                pipeline
                | "Shards" >> beam.Create(range(plan.num_shards))
                | "Spread" >> beam.Reshuffle()
                | "Make" >> beam.Map(_make, work, Shared())
                | "Gather" >> beam.combiners.ToList()
                | "Finish" >> beam.Map(_finish, plan)
            )
    except Exception as error:
        if _is_interrupt(error):
            raise KeyboardInterrupt from error
        failures = _read_failures(plan)
        if not failures:
            raise
        raise UserError("\n".join(failures)) from error
    finished = begin_store(plan)
    if finished is None and PipelineState.is_terminal(pipeline.result.state):
        raise UserError(
            f"the pipeline has ended ({pipeline.result.state}) and {directory} is not complete; "
            "run the same command again to continue"
        )
    return finished


def import_beam() -> Any:
    """The module `apache_beam`. Raises UserError if it is not installed."""
    try:
        import apache_beam
    except ImportError as error:
        raise UserError(
            f"--runner needs Apache Beam ({error}): pip install 'imagen-jax[beam]'"
        ) from error
    return apache_beam


def _pipeline(runner: str, options: Sequence[str]) -> Any:
    """An empty pipeline. Raises UserError if the runner or its options are wrong."""
    from apache_beam import Pipeline
    from apache_beam.options.pipeline_options import PipelineOptions

    # Beam's DirectRunner first tries to download another runner. FnApiRunner is its fallback, and
    # the runner that its options are meant for.
    name = "FnApiRunner" if runner.lower() in ("direct", "directrunner") else runner
    try:
        return Pipeline(options=PipelineOptions([f"--runner={name}", *options]))
    except (ValueError, ImportError) as error:
        raise UserError(f"--runner={runner}: {error}") from error


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether a KeyboardInterrupt is the cause; Beam wraps that of a worker in a RuntimeError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _absolute(path: str) -> str:
    """The path for workers, which have other working directories. An empty path stays empty."""
    return os.path.abspath(os.path.expanduser(path)) if path else path


# --- on the workers ---------------------------------------------------------------------------


def _make(number: int, work: Work, source: Any) -> tuple[int, Shard]:
    """Writes one shard. `source` is Beam's `Shared`, one for all threads of a worker."""
    plan = work.plan
    start, stop = plan.span(number)
    failure = _failed(plan) / f"{number}.txt"
    try:
        records = source.acquire(work.open)
        read = reader(work.config, records, work.image_size, work.num_threads)
        shard = make_shard(plan, number, read)
    except UserError as error:
        message = f"shard {number} of {plan.num_shards} (items {start:,} to {stop:,}): {error}"
        # The message cannot be written if the worker does not see the store.
        with contextlib.suppress(OSError):
            failure.parent.mkdir(exist_ok=True)
            write_atomically(failure, message.encode())
        raise
    # An earlier attempt may have failed.
    failure.unlink(missing_ok=True)
    logger.info("shard %d of %d: %d records", number, plan.num_shards, shard.count)
    return number, shard


def _finish(made: Iterable[tuple[int, Shard]], plan: StorePlan) -> None:
    shards = dict(made)
    finish_store(plan, [shards[number] for number in sorted(shards)])


def _failed(plan: StorePlan) -> epath.Path:
    return epath.Path(plan.directory) / UNFINISHED / _FAILED


def _read_failures(plan: StorePlan) -> list[str]:
    """The messages of the failed shards, in the order of the shards."""
    folder = _failed(plan)
    files = list(folder.glob("[0-9]*.txt")) if folder.exists() else []
    return [file.read_text() for file in sorted(files, key=lambda file: int(file.stem))]
