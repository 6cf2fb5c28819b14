"""Shows the progress of a long job in the terminal."""

from __future__ import annotations

import time


class ProgressLine:
    """Prints the progress of a long job, with an estimate of the remaining time.

    Call it with the number of units done and their total, the first time before any work.

    Args:
      unit: what is counted, such as "pictures".
      every: minimum seconds between two lines.
    """

    def __init__(self, unit: str, every: float = 10.0):
        self._unit = unit
        self._every = every
        self._first: tuple[float, int] | None = None
        self._last = -float("inf")

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
            if done:
                print(f"{done:,} of {total:,} {self._unit} were done before", flush=True)
            return
        if now - self._last < self._every and done < total:
            return
        self._last = now
        start, before = self._first
        rate = (done - before) / max(now - start, 1e-9)
        left = f", {(total - done) / rate / 60:.1f} min left" if rate and done < total else ""
        print(f"{done:,} of {total:,} {self._unit}, {rate:,.0f}/s{left}", flush=True)
