"""Checkpoints of one stage's run, by Orbax: asynchronous, sharded, resumable on another mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath

from imagen_jax.config import CascadeConfig, flatten
from imagen_jax.errors import UserError
from imagen_jax.training.state import TrainState

# What may differ between a checkpoint and the config that continues it: lengths, intervals,
# places and devices. Everything else would make a different run under the same name.
CHANGEABLE = (
    "data.num_threads",
    "data.num_workers",
    "data.path",
    "mesh.*",
    "sample.*",
    "train.num_steps",
    "train.batch_size",
    "train.log_every",
    "train.preview_every",
    "train.save_every",
    "train.keep_checkpoints",
    "model.scan_blocks",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a checkpoint holds beside the arrays.

    Attributes:
      config: the cascade's config as plain JSON values.
      examples_seen: images drawn from the data so far in this run.
      images_before: images that the weights had seen before this run (`--init_from`). The position
        in the order of the data is the sum of both.
      encoder: identity of the text encoder's weights.
    """

    config: dict[str, Any]
    examples_seen: int
    images_before: int
    encoder: str


class Checkpoints:
    """The checkpoints under one directory; the newest `keep` are kept."""

    def __init__(self, directory: epath.PathLike, keep: int):
        from orbax.checkpoint import v1 as ocp

        self._checkpointer = ocp.training.Checkpointer(
            # Orbax refuses relative paths, and only once it writes.
            epath.Path(directory).resolve(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            # A killed save leaves a temporary directory behind; it is not a checkpoint.
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, None without one."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: TrainState, info: RunInfo) -> None:
        """Starts to write a checkpoint; training may go on while it is written."""
        self._checkpointer.save_async(
            step, state, force=True, custom_metadata=dataclasses.asdict(info)
        )

    def info(self, step: int) -> RunInfo:
        """What was saved beside the arrays of `step`."""
        return RunInfo(**self._checkpointer.metadata(step).custom_metadata)

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of `step`, laid out as the shardings in `abstract` say."""
        return self._checkpointer.load(step, abstract)

    def wait(self) -> None:
        """Returns once the last save is on disk."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits, then frees the threads that write."""
        self._checkpointer.close()


def check_same_run(saved: dict[str, Any], config: CascadeConfig, stage: str) -> None:
    """Refuses to continue a run with settings that would make it another one.

    Raises:
      UserError: shows each differing key with both values and the remedy.
    """
    old, new = (_relevant(values, stage) for values in (saved, flatten(config)))
    differences = [
        f"  {key}: {old.get(key, '(absent)')!r} in the checkpoint, {new.get(key, '(absent)')!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _changeable(key)
    ]
    if differences:
        raise UserError(
            f"the checkpoint of stage {stage!r} was made with other settings:\n"
            + "\n".join(differences)
            + "\nRestore them, or give a new --workdir (with --init_from=OLD_WORKDIR to start "
            "from these weights)."
        )


def _relevant(values: dict[str, Any], stage: str) -> dict[str, Any]:
    """Flat settings of the cascade and of this stage (its prefix removed), no other stage's."""
    prefix = f"stages.{stage}."
    flat = flatten(values)
    return {
        key.removeprefix(prefix): value
        for key, value in flat.items()
        if key.startswith(prefix) or not key.startswith("stages.")
    }


def _changeable(key: str) -> bool:
    return any(
        key.startswith(name[:-1]) if name.endswith("*") else key == name for name in CHANGEABLE
    )
