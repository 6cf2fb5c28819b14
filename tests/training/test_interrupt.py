"""Signals are recorded, and the previous handlers are restored."""

import os
import signal

import pytest

from imagen_jax.training.interrupt import Stop, StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_recorded_and_handlers_are_restored(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts():
    with pytest.raises(KeyboardInterrupt), StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    "number, step, status, words",
    [
        (signal.SIGTERM, 0, 143, "before the first step of stage sr: there is nothing to save"),
        (signal.SIGTERM, 1200, 0, "all 1,200 steps of stage sr are saved"),
        (signal.SIGINT, 0, 130, "before the first step"),
        (signal.SIGINT, 7, 130, "all 7 steps"),
    ],
)
def test_a_stop_says_whether_anything_is_saved(number, step, status, words):
    stop = Stop(signal=number, stage="sr", step=step)
    assert stop.status == status
    assert number.name in stop.describe() and words in stop.describe()
