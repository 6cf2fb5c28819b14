"""Ctrl-C and SIGTERM end a run between two steps, so that its state is whole and can be saved."""

from __future__ import annotations

import os
import signal
from types import FrameType

import jax

from imagen_jax.parallel.agreement import Agreement


class StopSignal:
    """While entered, the first SIGINT or SIGTERM is only noted; a second SIGINT interrupts.

    Attributes:
      received: the signal that asked to stop, or None.
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
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nStopping after this step (Ctrl-C: at once, without saving).\n")


class StopVote:
    """A signal at one process ends the run at the same step in all of them.

    Args:
      stop: of this process.
      agreement: with the others.
    """

    def __init__(self, stop: StopSignal, agreement: Agreement):
        self._stop = stop
        self._agreement = agreement
        self._alone = jax.process_count() == 1
        self._pending: jax.Array | None = None

    def passing(self) -> signal.Signals | None:
        """The signal that ends the run, or None; called once a step, in every process.

        With several processes it answers for the call before: the vote travels while the devices
        are busy with the step, and nothing waits for it.
        """
        if self._alone:
            return self._stop.received
        before, self._pending = self._pending, self._agreement.post([self._stop.received or 0])
        return None if before is None else self._result(before)

    def settled(self) -> signal.Signals | None:
        """The same of this moment; waits for the other processes."""
        if self._alone:
            return self._stop.received
        self._pending = None
        return self._result(self._agreement.post([self._stop.received or 0]))

    def until(self, done: bool) -> tuple[signal.Signals | None, bool]:
        """The signal, as `settled`, and whether `done` holds in every process."""
        if self._alone:
            return self._stop.received, done
        rows = self._agreement.read(
            self._agreement.post([self._stop.received or 0, int(not done)])
        ).max(axis=0)
        return self._as_signal(rows[0]), not rows[1]

    def _result(self, rows: jax.Array) -> signal.Signals | None:
        return self._as_signal(self._agreement.read(rows).max())

    def _as_signal(self, number: int) -> signal.Signals | None:
        """All processes take the signal for their own. Of two, SIGTERM counts."""
        if number:
            self._stop.received = signal.Signals(int(number))
        return self._stop.received if number else None
