"""Checkpoints of one stage's run, by Orbax: asynchronous, sharded, resumable on another mesh."""

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

from imagen_jax.files import absolute
from imagen_jax.parallel.agreement import Agreement
from imagen_jax.training.counters import Progress
from imagen_jax.training.state import TrainState, state_digest

# Beside the directory of the checkpoints, so that Orbax does not take what is there for one.
DAMAGED = "damaged"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a checkpoint holds beside the arrays.

    Attributes:
      config: the cascade's config as plain JSON values.
      encoder: identity of the text encoder's weights.
      progress: the counters of the run.
    """

    config: dict[str, Any]
    encoder: str
    progress: Progress


class DamagedCheckpoint(Exception):
    """A checkpoint cannot be read, or is not what was saved."""


class Checkpoints:
    """The checkpoints under one directory; the newest `keep` are kept.

    Of several processes each writes and reads its own parts of the arrays, so all must call the
    same methods in turn; and all come to the same result: what one cannot read is damaged for all.
    """

    def __init__(self, directory: epath.PathLike, keep: int):
        # Orbax refuses relative paths, and only once it writes.
        self._directory = absolute(epath.Path(directory))
        self._keep = keep

    @functools.cached_property
    def _agreement(self) -> Agreement:
        return Agreement()

    @functools.cached_property
    def _writer(self):
        """Made for the first save: one garbled file is enough that it cannot be made."""
        from orbax.checkpoint import v1 as ocp

        logging.getLogger("absl").addFilter(_told_elsewhere)
        _drop_late_writers()
        return ocp.training.Checkpointer(
            self._directory,
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
            # A killed save leaves a temporary directory behind; it is not a checkpoint.
            cleanup_tmp_directories=True,
        )

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, the newest first; some may be damaged."""
        names = []
        if jax.process_index() == 0 and self._directory.exists():
            names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
        return self._agreement.from_main(steps)

    def save(self, step: int, state: TrainState, info: RunInfo) -> None:
        """Starts to write a checkpoint; training may go on while it is written.

        Raises what went wrong with the one before.
        """
        metadata = {
            "config": info.config,
            "encoder": info.encoder,
            **dataclasses.asdict(info.progress),
            # TensorStore does not notice a flipped bit in an array, nor JSON one in a number.
            "digest": int(state_digest(state)),
        }
        metadata["checksum"] = _checksum(metadata)
        self._writer.save_async(step, state, force=True, custom_metadata=metadata)

    def info(self, step: int) -> RunInfo:
        """What was saved beside the arrays of `step`. Raises DamagedCheckpoint."""
        saved = self._metadata(step)
        with _reading(step):
            progress = {
                field.name: saved[field.name]
                for field in dataclasses.fields(Progress)
                # Counters that an older version did not have start at 0.
                if field.name in saved
            }
            return RunInfo(
                config=saved["config"], encoder=saved["encoder"], progress=Progress(**progress)
            )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of `step`, laid out as the shardings in `abstract` say.

        Raises:
          DamagedCheckpoint: it cannot be read, or is not bit for bit what was saved.
        """
        from orbax.checkpoint import v1 as ocp

        saved = self._metadata(step).get("digest")
        here = jax.process_index()
        # Each process by itself: one that fails would leave the others waiting for it.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=str(here)
        )
        state, reason = None, ""
        try:
            with _reading(step), ocp.Context(multiprocessing_options=alone):
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
        """Moves a damaged checkpoint out of the way, and returns where it lies now."""
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
        """As process 0 reads it. Raises DamagedCheckpoint."""
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

        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
        with _reading(step), ocp.Context(multiprocessing_options=alone):
            metadata = ocp.metadata(self._directory / str(step)).custom_metadata
            if not isinstance(metadata, dict):
                raise ValueError("there is no metadata")
            if metadata.pop("checksum", None) not in (None, _checksum(metadata)):
                raise ValueError("the metadata is not what was saved")
            return metadata

    def _raise_first(self, reason: str) -> None:
        """Raises DamagedCheckpoint in all processes if one of them gives a reason for it."""
        for each in self._agreement.gather(reason):
            if each:
                raise DamagedCheckpoint(each)

    def close(self) -> None:
        """Returns once the last save is on disk; raises what went wrong with it."""
        if "_writer" in self.__dict__:
            self._writer.close()


def _checksum(metadata: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def _told_elsewhere(record: logging.LogRecord) -> bool:
    """Drops the tracebacks of Orbax's threads: `save` and `close` raise the same error."""
    return not (record.exc_info and "orbax" in record.pathname)


def _drop_late_writers() -> None:
    """Silences files that fail after the save they belong to has failed.

    Orbax gives up at the first and closes its event loop; TensorStore then has nobody to tell of
    the others, and hands each to `sys.excepthook` (or, with uvloop, `sys.unraisablehook`), which
    print tracebacks.
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
    """Whatever goes wrong inside becomes a DamagedCheckpoint with one line of explanation."""
    level = logging.root.manager.disable
    # A damaged file makes Orbax and asyncio print pages.
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
            # Futures that hold an error that nobody asked for log it when they go.
            gc.collect()
        logging.disable(level)
    if reason:
        raise DamagedCheckpoint(f"the checkpoint of step {step:,} cannot be read ({reason})")
