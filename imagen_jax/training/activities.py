"""What a run does beside its steps: compile, save, validate, draw pictures.

These activities take from seconds to many minutes. Each is shown with an estimate of its time, and
each can be left when the run is to stop: a scheduler kills a job about half a minute after its
signal, and before that the state must be saved.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from imagen_jax.training.interrupt import StopVote

T = TypeVar("T")

# Shorter activities are not shown.
_SHORT = 1.0
# Seconds of the compiler for each line of a lowered program, measured on two CPU cores. Other
# compilers differ too much for a guess before the first program.
_CPU_SECONDS_PER_LINE = 0.8e-3


class Stopped(Exception):
    """The run is to stop: an activity was left before its end."""


class Activity:
    """One activity while it goes on.

    Args:
      what: in words, such as "saving step 1,000".
      expected: seconds that it will take, None: unknown.
    """

    def __init__(self, what: str, expected: float | None = None):
        self._what = what
        self._start = time.monotonic()
        self._expected = expected
        # When the first part was done.
        self._second = self._start

    def expect(self, seconds: float | None) -> None:
        """Sets how many seconds the activity will take from now."""
        if seconds is not None:
            self._expected = time.monotonic() - self._start + seconds

    def done(self, parts: int, total: int) -> None:
        """Tells how many parts of equal length are done, each time; gives the estimate.

        The first part does not count, since its programs may have had to be compiled.
        """
        if parts == 1:
            self._second = time.monotonic()
        else:
            each = (time.monotonic() - self._second) / (parts - 1)
            self.expect(each * (total - parts))

    def text(self) -> str:
        """Such as "drawing samples, 12 s, about 30 s left"."""
        seconds = time.monotonic() - self._start
        text = f"{self._what}, {human_seconds(seconds)}"
        if self._expected is None:
            return text
        if self._expected > seconds:
            return f"{text}, about {human_seconds(self._expected - seconds)} left"
        return f"{text}, {human_seconds(self._expected)} were expected"


class Activities:
    """Shows activities and ends them when the run is to stop.

    Args:
      vote: whether the run is to stop; None: it never is.
      mesh: set while a program is compiled, see models/batch_axis.py; None: none.
    """

    def __init__(self, vote: StopVote | None = None, mesh: Mesh | None = None):
        self._vote, self._mesh = vote, mesh
        self._show: Callable[[str], None] = lambda text: None
        self._period = 1.0
        # Of earlier activities, by kind.
        self._seconds: dict[str, float] = {}
        # An activity may be part of another one. The innermost is shown.
        self._open: list[Activity] = []

    def show_with(self, show: Callable[[str], None], period: float) -> None:
        """Sets what shows activities.

        Args:
          show: called with the text of an activity, and with "" at its end, from a thread.
          period: seconds between two calls.
        """
        self._show, self._period = show, period

    @contextlib.contextmanager
    def doing(self, what: str, kind: str | None = None) -> Iterator[Activity]:
        """Shows an activity; the last one of the same `kind` (default: `what`) gives the estimate.

        It cannot be left before its end.
        """
        activity = Activity(what, self._seconds.get(kind or what))
        start, ended = time.monotonic(), threading.Event()

        def show() -> None:
            wait = _SHORT
            while not ended.wait(wait):
                if self._open[-1:] == [activity]:
                    self._show(activity.text())
                wait = self._period

        thread = threading.Thread(target=show, name="activity", daemon=True)
        self._open.append(activity)
        thread.start()
        try:
            yield activity
            self._seconds[kind or what] = time.monotonic() - start
        finally:
            ended.set()
            thread.join()
            self._open.remove(activity)
            if time.monotonic() - start > _SHORT:
                self._show("")

    def each(self, what: str, parts: Iterable[T], total: int) -> Iterator[T]:
        """Yields the parts of an activity; the same number in all processes.

        Raises:
          Stopped: the run is to stop; checked before each part.
        """
        with self.doing(what) as activity:
            for number, part in enumerate(parts):
                if number:
                    activity.done(number, total)
                if self._vote is not None and self._vote.poll() is not None:
                    raise Stopped
                yield part

    def call(self, what: str, function: Callable[[], T]) -> T:
        """`function()`, called in a thread, which must not dispatch programs.

        Python handles a signal between two of its instructions, and compiling a large network is a
        single one. All processes wait until each has its result.

        Raises:
          Stopped: the run is to stop; the thread then runs on, unused.
        """
        with self.doing(what):
            return self._wait_for(function)

    def compile(
        self,
        what: str,
        lower: Callable[[], jax.stages.Lowered],
        options: dict[str, Any] | None = None,
    ) -> jax.stages.Compiled:
        """Lowers and compiles a program.

        Raises:
          Stopped: the run is to stop; the compiler then runs on in a thread.
        """
        with self.doing(f"compiling {what}") as activity:

            def run() -> jax.stages.Compiled:
                mesh = contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)
                with mesh:
                    lowered = lower()
                lines, start = lowered.as_text().count("\n"), time.monotonic()
                activity.expect(_compile_times.expected(lines))
                compiled = lowered.compile(compiler_options=options)
                _compile_times.add(lines, time.monotonic() - start)
                return compiled

            return self._wait_for(run)

    def program(self, what: str, jitted: Any) -> Program:
        """A jitted function that is compiled as an activity."""
        return Program(what, jitted, self)

    def _wait_for(self, function: Callable[[], T]) -> T:
        if self._vote is None:
            return function()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        while True:
            finished = bool(concurrent.futures.wait([future], timeout=0.1).done)
            if finished and future.exception() is not None:
                return future.result()
            received, all_finished = self._vote.decide_with(finished)
            if received is not None:
                raise Stopped
            if all_finished:
                return future.result()


class Program:
    """A jitted function; its first call for each shape and sharding compiles it as an activity."""

    def __init__(self, what: str, jitted: Any, activities: Activities):
        self._what, self._jitted, self._activities = what, jitted, activities
        self._compiled: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        """The result; `static` are the function's static arguments.

        Raises:
          Stopped: the run is to stop, while the function is compiled.
        """
        key = tuple(static.items()), *map(_kind, jax.tree.leaves(arguments))
        if key not in self._compiled:
            self._compiled[key] = self._activities.compile(
                self._what, lambda: self._jitted.lower(*arguments, **static)
            )
        return self._compiled[key](*arguments)


def _kind(leaf: Any) -> tuple[Any, ...]:
    return jax.typeof(leaf), getattr(leaf, "sharding", None)


class _CompileTimes:
    """Estimates the time of the compiler from the programs that it has compiled."""

    def __init__(self) -> None:
        self._seconds_per_line: float | None = None

    def expected(self, lines: int) -> float | None:
        rate = self._seconds_per_line
        if rate is None and jax.default_backend() == "cpu":
            rate = _CPU_SECONDS_PER_LINE
        return None if rate is None else lines * rate

    def add(self, lines: int, seconds: float) -> None:
        # The last one: if it came from the cache of compiled programs, the next will, too.
        self._seconds_per_line = seconds / max(lines, 1)


_compile_times = _CompileTimes()


def compile_now(
    lower: Callable[[], jax.stages.Lowered], options: dict[str, Any] | None = None
) -> jax.stages.Compiled:
    """Lowers and compiles a program without showing it."""
    return lower().compile(compiler_options=options)


def human_seconds(seconds: float) -> str:
    """Such as "12 s" or "3 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
