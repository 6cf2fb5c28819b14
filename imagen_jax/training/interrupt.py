"""Ends a run between two steps on Ctrl-C or SIGTERM, so that its state can be saved."""

from __future__ import annotations

import dataclasses
import os
import signal
from types import FrameType

import jax

from imagen_jax.parallel.agreement import Agreement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """How a signal ended a run.

    Attributes:
      signal: that ended it.
      stage: that was trained.
      step: the step that is saved; 0: there was none to save.
    """

    signal: signal.Signals
    stage: str
    step: int

    def describe(self) -> str:
        """What happened and how to go on."""
        if not self.step:
            return (
                f"Stopped by {self.signal.name} before the first step of stage {self.stage}: there "
                "is nothing to save. The same command starts it again."
            )
        return (
            f"Stopped by {self.signal.name}; all {self.step:,} steps of stage {self.stage} are "
            "saved. The same command continues."
        )

    @property
    def status(self) -> int:
        """The exit status of the process.

        A scheduler that sent SIGTERM got what it asked for, unless nothing could be saved. After
        Ctrl-C a shell script should not go on as if the run were done.
        """
        if self.signal == signal.SIGTERM and self.step:
            return 0
        return 128 + self.signal


class StopSignal:
    """A context that records the first SIGINT or SIGTERM; a later SIGINT interrupts at once.

    Attributes:
      received: the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> StopSignal:
        self._previous = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        # Not `print`: the signal may have interrupted one.
        os.write(2, b"\nStopping: the state is saved first (Ctrl-C: at once, without saving).\n")


class StopVote:
    """Makes a signal to one process end the run at the same step in all processes.

    Args:
      stop: the signal of this process.
      agreement: with the other processes.
    """

    def __init__(self, stop: StopSignal, agreement: Agreement):
        self._stop = stop
        self._agreement = agreement
        self._alone = jax.process_count() == 1
        self._pending: jax.Array | None = None

    def poll(self) -> signal.Signals | None:
        """The signal that ends the run, or None; every process calls it once per step.

        With several processes it returns the result of the previous call: values are exchanged
        while the devices run a step, and nothing waits for them.
        """
        if self._alone:
            return self._stop.received
        before, self._pending = self._pending, self._agreement.post([self._stop.received or 0])
        return None if before is None else self._result(before)

    def decide(self) -> signal.Signals | None:
        """The current result; waits for the other processes."""
        if self._alone:
            return self._stop.received
        self._pending = None
        return self._result(self._agreement.post([self._stop.received or 0]))

    def decide_with(self, done: bool) -> tuple[signal.Signals | None, bool]:
        """The result of `decide`, and whether `done` holds in every process."""
        if self._alone:
            return self._stop.received, done
        rows = self._agreement.read(
            self._agreement.post([self._stop.received or 0, int(not done)])
        ).max(axis=0)
        return self._as_signal(rows[0]), not rows[1]

    def _result(self, rows: jax.Array) -> signal.Signals | None:
        return self._as_signal(self._agreement.read(rows).max())

    def _as_signal(self, number: int) -> signal.Signals | None:
        """Records the signal as this process's own; SIGTERM wins over SIGINT."""
        if number:
            self._stop.received = signal.Signals(int(number))
        return self._stop.received if number else None
