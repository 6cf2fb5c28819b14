"""Ends a run between two steps on Ctrl-C or SIGTERM, so that its state can be saved."""

from __future__ import annotations

import os
import signal
from types import FrameType

import jax

from imagen_jax.parallel.agreement import Agreement


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
        os.write(2, b"\nStopping after this step (Ctrl-C: at once, without saving).\n")


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
