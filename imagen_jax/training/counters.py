"""Counters of a run on the host, and the metrics of the steps since the last log line.

Both are saved with the checkpoint, so that a continued run writes the same log lines.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from imagen_jax.data.pipeline import LeftOut
from imagen_jax.errors import UserError
from imagen_jax.parallel.agreement import Agreement
from imagen_jax.training.state import TrainState
from imagen_jax.training.step import Metrics, bucket_means

# Minimum number of pictures before the share of bad ones is checked.
_MIN_PICTURES = 100


@dataclasses.dataclass(kw_only=True)
class Progress:
    """Counters of a run.

    Attributes:
      examples_seen: images drawn from the data so far in this run.
      images_before: images that the weights had seen before this run (`--init_from`). The position
        in the order of the data is the sum of both.
      bad_items: pictures that could not be read and were replaced by others.
      bad_by_kind: the same by kind of fault.
      filtered_by_kind: pictures left out by the config's filters, by filter.
      skipped_steps: steps that changed nothing because their loss or gradient was not finite.
      skipped_in_a_row: number of skipped steps since the last step that was not skipped.
      last_loss: loss of the last log line.
      open_window: metrics of the steps since that line, from `Window.saved`.
    """

    examples_seen: int = 0
    images_before: int = 0
    bad_items: int = 0
    bad_by_kind: dict[str, int] = dataclasses.field(default_factory=dict)
    filtered_by_kind: dict[str, int] = dataclasses.field(default_factory=dict)
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    last_loss: float | None = None
    open_window: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
    """The complete state of a run between two steps, as in a checkpoint."""

    step: int
    state: TrainState
    progress: Progress


class LeftOutItems:
    """Counts pictures that were left out, and stops a run in which too many cannot be read.

    Args:
      progress: `settle` updates its counters.
      limit: `data.max_bad_share`.
      agreement: with the other processes.
    """

    def __init__(self, progress: Progress, limit: float, agreement: Agreement):
        self._progress = progress
        self._limit = limit
        self._agreement = agreement
        self._here: dict[str, Any] = {"rows": 0, "bad": {}, "filtered": {}}
        # Of all processes since they started: faults of earlier starts may have been corrected.
        self._rows = 0
        self._bad: collections.Counter[str] = collections.Counter()

    def add(self, left_out: LeftOut, rows: int) -> None:
        """Adds what was left out while `rows` rows of this process were read."""
        self._here["rows"] += rows
        for group, kinds in left_out.items():
            _add_counts(self._here[group], kinds)

    def settle(self) -> None:
        """Adds up what was left out in all processes; waits for them.

        Raises:
          UserError: the share of bad pictures exceeds the limit, after `_MIN_PICTURES` or more.
        """
        progress = self._progress
        for part in self._agreement.gather(self._here):
            _add_counts(progress.bad_by_kind, part["bad"])
            _add_counts(progress.filtered_by_kind, part["filtered"])
            progress.bad_items += sum(part["bad"].values())
            self._rows += part["rows"]
            self._bad.update(part["bad"])
        self._here = {"rows": 0, "bad": {}, "filtered": {}}
        total = self._bad.total()
        tried = self._rows + total
        if tried >= _MIN_PICTURES and total > self._limit * tried:
            kinds = "\n".join(f"  {number:,} {kind}" for kind, number in self._bad.most_common())
            raise UserError(
                f"{total:,} of {tried:,} pictures cannot be used, more than "
                f"data.max_bad_share={self._limit}:\n{kinds}\n"
                "The warnings above name some of them, and python -m imagen_jax.cli.check_data "
                "--config=... shows more. Correct the data, or allow a greater share, and run the "
                "same command again: it continues from the last checkpoint"
            )


def _add_counts(total: dict[str, int], counts: dict[str, int]) -> None:
    for kind, number in counts.items():
        total[kind] = total.get(kind, 0) + number


class SkippedSteps:
    """Counts skipped steps, and stops a run in which no step succeeds any more.

    A step is checked after the dispatch of the next one, so that the devices stay busy.

    Args:
      progress: its counters are updated.
      limit: `train.max_skipped_steps`.
      on_skip: called with the number of each skipped step.
    """

    def __init__(self, progress: Progress, limit: int, on_skip: Callable[[int], None]):
        self._progress = progress
        self._limit = limit
        self._on_skip = on_skip
        self._pending: tuple[int, jax.Array] | None = None

    def dispatched(self, step: int, skipped: jax.Array) -> None:
        """Records a step that was just dispatched, and waits for the one before it."""
        skipped.copy_to_host_async()
        self.settle()
        self._pending = step, skipped

    def settle(self) -> None:
        """Waits for the last dispatched step and counts it.

        Raises:
          UserError: `limit` steps in a row were skipped.
        """
        if self._pending is None:
            return
        (step, skipped), self._pending = self._pending, None
        progress = self._progress
        if not skipped:
            progress.skipped_in_a_row = 0
            return
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        self._on_skip(step)
        if progress.skipped_in_a_row >= self._limit:
            raise UserError(
                f"no step from {step + 1 - progress.skipped_in_a_row:,} to {step:,} had a finite "
                f"loss and gradient (train.max_skipped_steps={self._limit}), so the run has "
                "diverged. None of them changed the weights, and the earlier checkpoints are kept. "
                "Start again from the last one in another directory with a lower "
                "train.learning_rate (or a longer warm-up, a smaller clip_norm, model.dtype "
                "'float32'): --workdir=NEW --init_from=THIS_WORKDIR. The same command would "
                "diverge again"
            )


class Window:
    """The steps since the last log line.

    Args:
      saved: `Progress.open_window` of a continued run.

    Attributes:
      data_wait: seconds that the loop waited for data.
    """

    def __init__(self, saved: list[dict[str, Any]] | None = None):
        self.data_wait = 0.0
        self._metrics: list[dict[str, Any]] = [
            {name: np.asarray(value, np.float32) for name, value in step.items()}
            for step in saved or []
        ]
        self._steps = 0
        self._paused = 0.0
        self._start = time.perf_counter()

    def add(self, metrics: Metrics) -> None:
        """Adds the metrics of a step."""
        self._metrics.append(metrics)
        self._steps += 1

    def saved(self) -> list[dict[str, Any]]:
        """Metrics of the steps that were not skipped, as JSON values; waits for the devices."""
        return [
            {name: np.asarray(value, np.float32).tolist() for name, value in step.items()}
            for step in jax.device_get(self._metrics)
            if not step["skipped"]
        ]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside from the time of the steps."""
        # Otherwise the time of a running step would be excluded too.
        jax.block_until_ready(self._metrics)
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def summarize(self, batch_size: int) -> dict[str, Any]:
        """Means over the steps that were not skipped, as plain numbers, and rates."""
        steps = jax.device_get(self._metrics)
        seconds = time.perf_counter() - self._start - self._paused
        values: dict[str, Any] = {}
        good = [step for step in steps if not step["skipped"]]
        if good:
            values = {
                "loss": float(np.mean([step["loss"] for step in good])),
                "loss_by_logsnr": bucket_means(
                    {
                        name: np.sum([step[name] for step in good], axis=0)
                        for name in ("bucket_loss", "bucket_count")
                    }
                ),
                "grad_norm": float(np.mean([step["grad_norm"] for step in good])),
            }
        return values | {
            "images_per_second": self._steps * batch_size / seconds,
            "data_wait_share": self.data_wait / seconds,
        }
