"""Goodput: the shares of a run's wall time by activity."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

# Time outside of any `during` is that of the steps.
STEP = "step"
ACTIVITIES = ("start", "compile", "data_wait", "evaluation", "checkpoint")


class Goodput:
    """Shares of the wall time since the construction of this object.

    Activities, each without the activities inside it: "start" (a start without compilation: reading
    a checkpoint, initialising weights), "compile" (the train step), "data_wait", "evaluation"
    (validation and pictures, with their compilation), "checkpoint" (the part of a save for which
    the steps wait). The rest is "step".

    Args:
      clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._seconds = dict.fromkeys((STEP, *ACTIVITIES), 0.0)
        self._current = STEP
        self._since = clock()

    @contextlib.contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """Counts the time inside as `activity`."""
        before = self._switch(activity)
        try:
            yield
        finally:
            self._switch(before)

    def shares(self) -> dict[str, float]:
        """The shares of all activities and of "step", which add up to 1."""
        self._switch(self._current)
        total = sum(self._seconds.values())
        if not total:
            return dict.fromkeys(self._seconds, 0.0)
        return {activity: seconds / total for activity, seconds in self._seconds.items()}

    def seconds(self, activity: str) -> float:
        """Seconds of `activity` so far."""
        self._switch(self._current)
        return self._seconds[activity]

    def _switch(self, activity: str) -> str:
        now = self._clock()
        self._seconds[self._current] += now - self._since
        self._since = now
        before, self._current = self._current, activity
        return before
