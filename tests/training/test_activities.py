"""Activities are shown with an estimate, and end when the run is to stop."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.training import activities as lib
from imagen_jax.training.activities import Activities, Activity, Stopped, human_seconds


class Vote:
    """A vote that ends the run once `stopped` is set."""

    def __init__(self):
        self.stopped = False

    def poll(self):
        return 15 if self.stopped else None

    def decide_with(self, done):
        return self.poll(), done


@pytest.fixture
def shown(monkeypatch):
    """The texts that activities show, with a hundredth of the usual delays."""
    monkeypatch.setattr(lib, "_SHORT", 0.02)
    return []


def showing(shown, vote=None) -> Activities:
    activities = Activities(vote)
    activities.show_with(shown.append, 0.02)
    return activities


def test_a_long_activity_is_shown_and_a_short_one_is_not(shown):
    activities = showing(shown)
    with activities.doing("blinking"):
        pass
    assert not shown
    with activities.doing("saving step 5", kind="saving"):
        time.sleep(0.1)
    assert shown[0] == "saving step 5, 0 s" and shown[-1] == ""


def test_the_estimate_is_the_time_of_the_last_one_of_its_kind(shown):
    activities = showing(shown)
    activities._seconds["saving"] = 40.0
    with activities.doing("saving step 5", kind="saving"):
        time.sleep(0.1)
    assert shown[0] == "saving step 5, 0 s, about 40 s left"
    assert 0.1 < activities._seconds["saving"] < 1


def test_the_estimate_follows_the_parts_after_the_first(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    activity = Activity("validating")
    texts = []
    # The first part is compiled for 100 seconds.
    for part, at in ((1, 110.0), (2, 120.0), (3, 130.0)):
        now[0] = at
        activity.done(part, 10)
        texts.append(activity.text())
    assert texts == [
        "validating, 1 min 50 s",
        "validating, 2 min 0 s, about 1 min 20 s left",
        "validating, 2 min 10 s, about 1 min 10 s left",
    ]
    now[0] = 300.0
    assert activity.text() == "validating, 5 min 0 s, 3 min 20 s were expected"


def test_of_nested_activities_the_inner_one_is_shown(shown):
    activities = showing(shown)
    for _ in activities.each("validating", range(2), 2):
        with activities.doing("compiling"):
            time.sleep(0.06)
    assert any(text.startswith("compiling") for text in shown)
    assert not any(text.startswith("validating") for text in shown)


def test_a_stop_ends_what_has_parts_before_the_next_one(shown):
    vote, done = Vote(), []
    with pytest.raises(Stopped):
        for part in showing(shown, vote).each("validating", range(5), 5):
            done.append(part)
            vote.stopped = part == 2
    assert done == [0, 1, 2]


def test_a_stop_does_not_wait_for_what_has_no_parts(shown):
    vote, release = Vote(), threading.Event()
    threading.Timer(0.1, lambda: setattr(vote, "stopped", True)).start()
    with pytest.raises(Stopped):
        showing(shown, vote).call("reading", lambda: release.wait(60))
    release.set()


def test_results_and_errors_come_through(shown):
    activities = showing(shown, Vote())
    assert activities.call("reading", lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        activities.call("reading", lambda: 1 / 0)


def test_a_program_is_compiled_once_for_each_shape(shown):
    names = []
    activities = showing(shown, Vote())
    compile_ = activities.compile
    activities.compile = lambda what, lower: names.append(what) or compile_(what, lower)
    program = activities.program(
        "the sum", jax.jit(lambda x, *, n: x.sum() * n, static_argnames="n")
    )
    for size in (3, 3, 4):
        assert program(jnp.ones(size), n=2) == 2 * size
    assert program(jnp.ones(3), n=5) == 15
    assert names == ["the sum"] * 3


def test_the_compiler_is_estimated_from_what_it_has_compiled():
    times = lib._CompileTimes()
    assert times.expected(10_000) == pytest.approx(8.0)  # on a CPU
    times.add(1_000, 5.0)
    assert times.expected(2_000) == 10.0


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s")]
)
def test_human_seconds(seconds, text):
    assert human_seconds(seconds) == text
