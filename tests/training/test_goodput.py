"""Shares of wall time, with a clock that the test sets."""

import pytest

from imagen_jax.training.goodput import ACTIVITIES, STEP, Goodput


def test_shares_are_exclusive_and_add_up_to_one():
    now = [100.0]
    goodput = Goodput(clock=lambda: now[0])

    def work(seconds):
        now[0] += seconds

    assert set(goodput.shares()) == {STEP, *ACTIVITIES}
    with goodput.during("start"):
        work(2)
        with goodput.during("compile"):
            work(5)
        work(1)
    work(10)
    with goodput.during("data_wait"):
        work(1)
        # In the middle of an activity: so far.
        assert goodput.seconds("data_wait") == 1
        work(1)
    shares = goodput.shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    expected = {"start": 3, "compile": 5, "step": 10, "data_wait": 2}
    expected |= {"evaluation": 0, "checkpoint": 0}
    assert shares == pytest.approx({name: seconds / 20 for name, seconds in expected.items()})


def test_an_error_ends_the_activity():
    now = [0.0]
    goodput = Goodput(clock=lambda: now[0])
    with pytest.raises(ValueError), goodput.during("checkpoint"):
        now[0] += 1
        raise ValueError
    now[0] += 3
    assert goodput.shares()["checkpoint"] == 0.25 and goodput.shares()["step"] == 0.75


def test_nothing_has_passed():
    assert set(Goodput(clock=lambda: 0.0).shares().values()) == {0.0}
