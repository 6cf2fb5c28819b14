"""Checkpoints of a stage by Orbax: asynchronous, sharded, restorable on another mesh."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import json
import logging
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from imagen_jax.data.identity import Identity
from imagen_jax.errors import UserError
from imagen_jax.files import absolute
from imagen_jax.parallel.agreement import Agreement
from imagen_jax.training.counters import Progress
from imagen_jax.training.state import TrainState, state_digest

# Directory of damaged checkpoints, beside that of the checkpoints: Orbax must not find them.
DAMAGED = "damaged"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The contents of a checkpoint beside the arrays.

    Attributes:
      config: the cascade's config as plain JSON values.
      encoder: identity of the text encoder's weights.
      tokenizer: hash of its tokenizer; "" in older checkpoints.
      data: identity of the sets of the "train" and "held_out" splits; without the entry of a split
        that was not read, and empty in older checkpoints.
      progress: the counters of the run.
    """

    config: dict[str, Any]
    encoder: str
    progress: Progress
    tokenizer: str = ""
    data: dict[str, Identity] = dataclasses.field(default_factory=dict)


class DamagedCheckpoint(Exception):
    """A checkpoint cannot be read, or differs from what was saved."""


class Checkpoints:
    """The checkpoints in one directory; the newest `keep` are kept.

    Each process writes and reads its own shards, so all must call the same methods in the same
    order. A checkpoint that one process cannot read is damaged for all.
    """

    def __init__(self, directory: epath.PathLike, keep: int):
        # Orbax refuses relative paths, but not before it writes.
        self._directory = absolute(epath.Path(directory))
        self._keep = keep
        self._running: Any = None

    @functools.cached_property
    def _agreement(self) -> Agreement:
        return Agreement()

    @functools.cached_property
    def _writer(self):
        """Created for the first save: a damaged file in the directory makes this fail."""
        from orbax.checkpoint import v1 as ocp

        logging.getLogger("absl").addFilter(_is_not_raised_later)
        _silence_late_writers()
        return ocp.training.Checkpointer(
            self._directory,
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
            # Left by a killed save.
            cleanup_tmp_directories=True,
        )

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, newest first; some may be damaged."""
        names = []
        if jax.process_index() == 0 and self._directory.exists():
            names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        steps = sorted((int(name) for name in names if _is_step(name)), reverse=True)
        return self._agreement.from_main(steps)

    def check_names(self) -> None:
        """Raises UserError if something else has the name of a step.

        Orbax takes everything for a checkpoint that is named by a number. It would delete it, or
        fail, or keep it and delete newer checkpoints of lower steps.
        """
        stranger = ""
        if jax.process_index() == 0 and self._directory.exists():
            for path in self._directory.iterdir():
                if path.name.isdecimal() and not _may_be_checkpoint(path):
                    stranger = str(path)
        if stranger := self._agreement.from_main(stranger):
            raise UserError(
                f"{stranger} is not a checkpoint of this program, but its name is a number, as "
                "those of checkpoints are. Move it to another directory, or give another --workdir"
            )

    def save(self, step: int, state: TrainState, info: RunInfo) -> None:
        """Starts to write a checkpoint; training may continue while it is written.

        Waits for the previous save and raises its error, if it failed.
        """
        self.wait()
        metadata = {
            "config": info.config,
            "encoder": info.encoder,
            "tokenizer": info.tokenizer,
            "data": info.data,
            **dataclasses.asdict(info.progress),
            # TensorStore does not detect a flipped bit in an array, nor JSON one in a number.
            "digest": int(state_digest(state)),
        }
        metadata["checksum"] = _checksum(metadata)
        self._running = self._writer.save_async(step, state, force=True, custom_metadata=metadata)

    def wait(self) -> None:
        """Waits until the last save is on disk; raises its error, if it failed."""
        running, self._running = self._running, None
        if running is not None:
            # Without this call, Orbax keeps a thread and three open files for each save.
            running.result()

    def info(self, step: int) -> RunInfo:
        """The `RunInfo` of the checkpoint of `step`. Raises DamagedCheckpoint."""
        saved = self._metadata(step)
        with _reading(step):
            progress = {
                field.name: saved[field.name]
                for field in dataclasses.fields(Progress)
                # Counters that an older version did not save start at 0.
                if field.name in saved
            }
            return RunInfo(
                config=saved["config"],
                encoder=saved["encoder"],
                tokenizer=saved.get("tokenizer", ""),
                data=saved.get("data", {}),
                progress=Progress(**progress),
            )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of `step`, with the shardings of `abstract`.

        Raises:
          DamagedCheckpoint: it cannot be read, or differs in a bit from what was saved.
        """
        from orbax.checkpoint import v1 as ocp

        saved = self._metadata(step).get("digest")
        state, reason = None, ""
        try:
            with _reading(step), _without_barriers():
                state = ocp.load(self._directory / str(step), abstract)
        except DamagedCheckpoint as error:
            reason = str(error)
        self._raise_first(reason)
        if saved is not None and int(state_digest(state)) != saved:
            raise DamagedCheckpoint(
                f"the checkpoint of step {step:,} is damaged: its arrays are not those saved"
            )
        return state

    def set_aside(self, step: int) -> epath.Path:
        """Moves a damaged checkpoint to `DAMAGED`; returns its new path."""
        shelf = self._directory.parent / DAMAGED
        place, number = shelf / str(step), 1
        if jax.process_index() == 0:
            while place.exists():
                number += 1
                place = shelf / f"{step}_{number}"
            shelf.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(place)
        return shelf / self._agreement.from_main(place.name)

    def _metadata(self, step: int) -> dict[str, Any]:
        """The metadata of a checkpoint, read by process 0. Raises DamagedCheckpoint."""
        metadata, reason = None, ""
        if jax.process_index() == 0:
            try:
                metadata = self._read_metadata(step)
            except DamagedCheckpoint as error:
                reason = str(error)
        self._raise_first(reason)
        return self._agreement.from_main(metadata)

    def _read_metadata(self, step: int) -> dict[str, Any]:
        from orbax.checkpoint import v1 as ocp

        with _reading(step), _without_barriers():
            metadata = ocp.metadata(self._directory / str(step)).custom_metadata
            if not isinstance(metadata, dict):
                raise ValueError("there is no metadata")
            if metadata.pop("checksum", None) not in (None, _checksum(metadata)):
                raise ValueError("the metadata is not what was saved")
            return metadata

    def _raise_first(self, reason: str) -> None:
        """Raises DamagedCheckpoint in all processes if one of them has a reason."""
        for each in self._agreement.gather(reason):
            if each:
                raise DamagedCheckpoint(each)

    def close(self) -> None:
        """Waits as `wait` does, and ends the threads of the writer."""
        try:
            self.wait()
        finally:
            if "_writer" in self.__dict__:
                self._writer.close()


def _is_step(name: str) -> bool:
    """Whether a save would give a directory this name; not "007", for example."""
    return name.isascii() and name.isdecimal() and name == str(int(name))


def _may_be_checkpoint(path: epath.Path) -> bool:
    """Whether `path` is a checkpoint or what damage may have left of one."""
    if not _is_step(path.name) or not path.is_dir():
        return False
    names = {inner.name for inner in path.iterdir()}
    return not names or bool(names & {"_CHECKPOINT_METADATA", "state"})


def _checksum(metadata: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def _without_barriers():
    """An Orbax context in which this process does not wait for others, which may have failed."""
    from orbax.checkpoint import v1 as ocp

    here = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=str(here)
    )
    return ocp.Context(multiprocessing_options=options)


def _is_not_raised_later(record: logging.LogRecord) -> bool:
    """Drops the tracebacks of Orbax's threads: `save` and `close` raise the same errors."""
    return not (record.exc_info and "orbax" in record.pathname)


def _silence_late_writers() -> None:
    """Silences write errors that follow the first error of a save.

    Orbax raises the first error and closes its event loop. TensorStore then passes each further
    error to `sys.excepthook` (or, with uvloop, `sys.unraisablehook`), which prints a traceback.
    """
    uncaught, unraisable = sys.excepthook, sys.unraisablehook

    def is_late(error: BaseException | None) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    def excepthook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not is_late(error):
            uncaught(kind, error, trace)

    def unraisablehook(args: Any) -> None:
        if not is_late(args.exc_value):
            unraisable(args)

    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook


@contextlib.contextmanager
def _reading(step: int) -> Iterator[None]:
    """Turns any error inside into a DamagedCheckpoint with one line of explanation."""
    level = logging.root.manager.disable
    # Orbax and asyncio would log pages for a damaged file.
    logging.disable(logging.CRITICAL)
    reason = ""
    try:
        yield
    except Exception as error:
        root: BaseException = error
        while (deeper := root.__cause__ or root.__context__) is not None:
            root = deeper
        reason = f"{type(root).__name__}: {' '.join(str(root).split())[:200]}"
        del root, deeper
    finally:
        if reason:
            # Futures with an error that was never retrieved log it when they are deleted.
            gc.collect()
        logging.disable(level)
    if reason:
        raise DamagedCheckpoint(f"the checkpoint of step {step:,} cannot be read ({reason})")
