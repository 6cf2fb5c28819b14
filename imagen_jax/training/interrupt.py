"""Ctrl-C and SIGTERM end a run between two steps, so that its state is whole and can be saved."""

from __future__ import annotations

import os
import signal
from types import FrameType


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
