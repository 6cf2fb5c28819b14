"""A profiler trace of some steps of a run, for TensorBoard, XProf or Perfetto."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

import jax
from etils import epath

from imagen_jax.errors import UserError
from imagen_jax.files import is_remote
from imagen_jax.training.mirror import Mirror


def parse_steps(text: str | None) -> tuple[int, int] | None:
    """Parses `--profile_steps=FIRST:LAST`, both inclusive; None stays None. Raises UserError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            f"--profile_steps={text} is not FIRST:LAST with 1 <= FIRST <= LAST, for example 10:15"
        )
    return first, last


class Profile:
    """Traces the steps FIRST to LAST of this process, counted from 1.

    Args:
      steps: FIRST and LAST, or None for no trace.
      directory: the trace is written to `plugins/profile/...` below it.
      print_line: prints a line.
    """

    def __init__(
        self,
        steps: tuple[int, int] | None,
        directory: epath.Path,
        print_line: Callable[[str], None],
    ):
        self._steps, self._directory, self._print_line = steps, directory, print_line
        self._done = 0
        self._tracing = False
        self._mirror: Mirror | None = None

    def step(self, number: int) -> contextlib.AbstractContextManager[object]:
        """A context for the dispatch of step `number` of the run."""
        self._done += 1
        if self._steps is None:
            return contextlib.nullcontext()
        if self._done == self._steps[0]:
            directory = self._directory
            if is_remote(directory):  # the profiler writes local files only
                self._mirror = Mirror(directory)
                directory = self._mirror.local
            jax.profiler.start_trace(str(directory))
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def dispatched(self, result: object) -> None:
        """Call it after the dispatch; waits for LAST, so that the trace holds all of it."""
        if self._tracing and self._done >= self._steps[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a running trace and writes it."""
        if not self._tracing:
            return
        self._tracing = False
        jax.profiler.stop_trace()
        if self._mirror is not None:
            self._mirror.close()
        self._print_line(
            f"profile of {self._steps[0]}:{self._steps[1]} written to {self._directory}"
        )
