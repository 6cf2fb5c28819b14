"""Where the wall time of a run goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

# What is not inside any `during` is the steps themselves.
STEP = "step"
ACTIVITIES = ("start", "compile", "data_wait", "evaluation", "checkpoint")


class Goodput:
    """Shares of the wall time since it was made.

    Activities, each counted without those inside it: "start" (what a start needs beside the
    compiler: reading a checkpoint, first weights), "compile" (the train step), "data_wait",
    "evaluation" (validation and pictures, their compilation included), "checkpoint" (the part of a
    save that the steps wait for); the rest is "step".

    Args:
      clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._seconds = dict.fromkeys((STEP, *ACTIVITIES), 0.0)
        self._current = STEP
        self._since = clock()

    @contextlib.contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """What is done inside counts as `activity`."""
        before = self._switch(activity)
        try:
            yield
        finally:
            self._switch(before)

    def shares(self) -> dict[str, float]:
        """The share of each activity and of "step"; they add up to 1."""
        self._switch(self._current)
        total = sum(self._seconds.values())
        if not total:
            return dict.fromkeys(self._seconds, 0.0)
        return {activity: seconds / total for activity, seconds in self._seconds.items()}

    def seconds(self, activity: str) -> float:
        """How long `activity` took so far."""
        self._switch(self._current)
        return self._seconds[activity]

    def _switch(self, activity: str) -> str:
        now = self._clock()
        self._seconds[self._current] += now - self._since
        self._since = now
        before, self._current = self._current, activity
        return before
