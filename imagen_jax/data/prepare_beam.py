"""`prepare_data` on Apache Beam: one store, its shards made by the workers of any runner.

The pipeline carries shard numbers and what the manifest says of each shard, never pictures: a
worker opens the source by its path, and makes the whole shard at its place. That may be done twice
and at any time, so whatever a runner tries again, and a pipeline that is started again, ends with
the bytes that `prepare` writes alone.
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

# Messages of the shards that failed. A runner hands over errors in its own way, if at all.
_FAILED = "failed"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a worker has to know.

    Attributes:
      plan: of the store.
      config: of the data.
      image_size, num_threads: see `prepare`.
      num_records: of the source, where the pipeline was started.
    """

    plan: StorePlan
    config: DataConfig
    image_size: int
    num_threads: int
    num_records: int

    def open(self) -> Records:
        """The source, on a worker. Raises UserError if it is another one there."""
        records = open_records(self.config, self.image_size)
        if len(records) != self.num_records:
            raise UserError(
                f"a worker finds {len(records):,} items in {self.config.path}, and there were "
                f"{self.num_records:,} where the pipeline was started: all machines must see the "
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
    """Writes the store of `prepare`, byte for byte, with a Beam pipeline.

    The directory and `config.path` must lead to the same files here and on every worker.

    Args:
      config, directory, image_size, max_items, shard_size: see `prepare`.
      runner: Beam's name of it, such as "DirectRunner" or "DataflowRunner".
      options: of Beam and the runner, as on a command line ("--region=...").
      num_threads: that read and check, for each shard that a worker makes at a time.

    Returns:
      The manifest, or None if the pipeline was only started (--no_wait_until_finish).

    Raises:
      UserError: Beam or what the runner needs is not installed, the runner or its options are
        wrong; a shard cannot be made; else as `prepare`.
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
            "the same command goes on from there"
        )
    return finished


def import_beam() -> Any:
    """The module. Raises UserError if it is not installed."""
    try:
        import apache_beam
    except ImportError as error:
        raise UserError(
            f"--runner needs Apache Beam ({error}): pip install 'imagen-jax[beam]'"
        ) from error
    return apache_beam


def _pipeline(runner: str, options: Sequence[str]) -> Any:
    """An empty pipeline. Raises UserError if the runner cannot be used so."""
    from apache_beam import Pipeline
    from apache_beam.options.pipeline_options import PipelineOptions

    # Beam's DirectRunner first tries to download another runner; this is what it then falls back
    # to, and the one that its options are for.
    name = "FnApiRunner" if runner.lower() in ("direct", "directrunner") else runner
    try:
        return Pipeline(options=PipelineOptions([f"--runner={name}", *options]))
    except (ValueError, ImportError) as error:
        raise UserError(f"--runner={runner}: {error}") from error


def _is_interrupt(error: BaseException | None) -> bool:
    """Beam raises a RuntimeError for a KeyboardInterrupt on a worker in this process."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _absolute(path: str) -> str:
    """Workers have working directories of their own. An empty path has a meaning to "emoji"."""
    return os.path.abspath(os.path.expanduser(path)) if path else path


# --- on the workers ---------------------------------------------------------------------------


def _make(number: int, work: Work, source: Any) -> tuple[int, Shard]:
    """`source` is a `Shared`: one for all threads of a worker."""
    plan = work.plan
    start, stop = plan.span(number)
    failure = _failed(plan) / f"{number}.txt"
    try:
        records = source.acquire(work.open)
        read = reader(work.config, records, work.image_size, work.num_threads)
        shard = make_shard(plan, number, read)
    except UserError as error:
        message = f"shard {number} of {plan.num_shards} (items {start:,} to {stop:,}): {error}"
        # It cannot be said there if the store itself is what the worker does not see.
        with contextlib.suppress(OSError):
            failure.parent.mkdir(exist_ok=True)
            write_atomically(failure, message.encode())
        raise
    # It may be another try that has come through.
    failure.unlink(missing_ok=True)
    logger.info("shard %d of %d: %d records", number, plan.num_shards, shard.count)
    return number, shard


def _finish(made: Iterable[tuple[int, Shard]], plan: StorePlan) -> None:
    shards = dict(made)
    finish_store(plan, [shards[number] for number in sorted(shards)])


def _failed(plan: StorePlan) -> epath.Path:
    return epath.Path(plan.directory) / UNFINISHED / _FAILED


def _read_failures(plan: StorePlan) -> list[str]:
    """The messages, in the order of the shards."""
    folder = _failed(plan)
    files = list(folder.glob("[0-9]*.txt")) if folder.exists() else []
    return [file.read_text() for file in sorted(files, key=lambda file: int(file.stem))]
