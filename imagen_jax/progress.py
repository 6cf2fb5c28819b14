"""Shows the progress of a long job in the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the drawing of pictures has come.

    Attributes:
      stage: what is at work: the name of a stage, or "text encoder" while that is compiled.
      compiling: whether its program is being compiled; nothing is drawn meanwhile.
      done, total: pictures of the stage (0 for the text encoder).
      share: of the work of all stages that is done, in [0, 1].
      seconds_left: an estimate, without compilation; None before the first batch.
    """

    stage: str
    compiling: bool
    done: int
    total: int
    share: float
    seconds_left: float | None


@dataclasses.dataclass
class _Part:
    total: int
    done: int
    cost: float
    measured: int = 0
    seconds: float = 0.0


class DrawingProgress:
    """Follows the drawing of pictures of several kinds and tells a callback.

    The rate of each kind is measured by itself, without the time of compilation.

    Args:
      callback: called with a `Progress` whenever something changes.
      totals: pictures by kind.
      done: those that were drawn before.
      costs: of a picture, in any unit common to all kinds; stands in for a rate that is not
        measured yet.
      clock: gives the time in seconds.
    """

    def __init__(
        self,
        callback: Callable[[Progress], None],
        totals: Mapping[str, int],
        done: Mapping[str, int],
        costs: Mapping[str, float],
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._callback = callback
        self._clock = clock
        self._parts = {name: _Part(totals[name], done[name], costs[name]) for name in totals}
        self._since = clock()

    @contextlib.contextmanager
    def compiling(self, kind: str) -> Iterator[None]:
        """Around the compilation of a program, whose time is left out."""
        self._tell(kind, compiling=True)
        start = self._clock()
        yield
        self._since += self._clock() - start
        if kind in self._parts:
            self._tell(kind)

    def add(self, kind: str, count: int) -> None:
        """`count` more pictures of a kind are drawn, with all the time since the last call."""
        now = self._clock()
        part = self._parts[kind]
        part.done += count
        part.measured += count
        part.seconds += now - self._since
        self._since = now
        self._tell(kind)

    def _tell(self, kind: str, compiling: bool = False) -> None:
        part = self._parts.get(kind, _Part(0, 0, 0.0))
        everything = sum(part.total * part.cost for part in self._parts.values())
        done = sum(part.done * part.cost for part in self._parts.values())
        self._callback(
            Progress(
                stage=kind,
                compiling=compiling,
                done=part.done,
                total=part.total,
                share=done / everything if everything else 1.0,
                seconds_left=self._seconds_left(),
            )
        )

    def _seconds_left(self) -> float | None:
        measured = [part for part in self._parts.values() if part.measured]
        if not measured:
            return None
        cost = sum(part.measured * part.cost for part in measured)
        per_cost = sum(part.seconds for part in measured) / cost
        return sum(
            (part.total - part.done)
            * (part.seconds / part.measured if part.measured else per_cost * part.cost)
            for part in self._parts.values()
        )


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar in the terminal, as a callback that shows each `Progress` that it is given."""
    from tqdm import tqdm

    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    with tqdm(total=1.0, desc="starting", bar_format=layout) as bar:

        def show(progress: Progress) -> None:
            verb = "compiling" if progress.compiling else "drawing"
            counts = f" {progress.done:,}/{progress.total:,}" if progress.total else ""
            left = progress.seconds_left
            bar.set_description_str(f"{verb} {progress.stage}{counts}", refresh=False)
            bar.set_postfix_str(
                "" if left is None else f"about {bar.format_interval(left)} left", refresh=False
            )
            bar.n = progress.share
            bar.refresh()

        yield show
