"""A profiler trace of some steps of a run, for TensorBoard, XProf or Perfetto."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable

import jax
from etils import epath

from imagen_jax.errors import UserError
from imagen_jax.files import is_remote


def parse_steps(text: str | None) -> tuple[int, int] | None:
    """`--profile_steps=FIRST:LAST`, both included, or None. Raises UserError."""
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
    """Traces the steps FIRST to LAST that this process does, counted from 1.

    Args:
      steps: which, or None for no trace.
      directory: where the trace goes, `plugins/profile/...` below it.
      tell: prints a line.
    """

    def __init__(
        self, steps: tuple[int, int] | None, directory: epath.Path, tell: Callable[[str], None]
    ):
        self._steps, self._directory, self._tell = steps, directory, tell
        self._done = 0
        self._local: str | None = None

    def step(self, number: int) -> contextlib.AbstractContextManager[object]:
        """Around the dispatch of step `number` of the run."""
        self._done += 1
        if self._steps is None:
            return contextlib.nullcontext()
        if self._done == self._steps[0]:
            # The profiler writes to local files only.
            remote = is_remote(self._directory)
            self._local = tempfile.mkdtemp() if remote else str(self._directory)
            jax.profiler.start_trace(self._local)
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def dispatched(self, result: object) -> None:
        """After the dispatch; the last step is waited for, so that the trace has it whole."""
        if self._local is not None and self._done >= self._steps[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is under way."""
        if self._local is None:
            return
        local, self._local = self._local, None
        jax.profiler.stop_trace()
        if is_remote(self._directory):
            source = epath.Path(local)
            for root, _, names in source.walk():
                place = self._directory / root.relative_to(source)
                place.mkdir(parents=True, exist_ok=True)
                for name in names:
                    (root / name).copy(place / name, overwrite=True)
            shutil.rmtree(local)
        self._tell(f"profile of {self._steps[0]}:{self._steps[1]} written to {self._directory}")
