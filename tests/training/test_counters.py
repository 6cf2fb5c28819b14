"""Counters and windows: skipped steps are counted, left out of means, and stop a diverged run."""

import math
import time

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.parallel.agreement import Agreement
from imagen_jax.training.counters import LeftOutItems, Progress, SkippedSteps, Window
from imagen_jax.training.step import BUCKETS


def metrics(loss: float, skipped: bool = False) -> dict:
    return {
        "loss": jnp.float32(loss),
        "grad_norm": jnp.float32(2 * loss),
        "bucket_loss": jnp.full(len(BUCKETS), loss),
        "bucket_count": jnp.ones(len(BUCKETS)),
        "skipped": jnp.bool_(skipped),
    }


def run(flags: str, limit: int, progress: Progress) -> list[int]:
    """The reported steps; "x" in `flags` is a skipped step."""
    reported = []
    skips = SkippedSteps(progress, limit, reported.append)
    for step, flag in enumerate(flags, 1):
        skips.dispatched(step, jnp.bool_(flag == "x"))
        # One step behind.
        assert all(number < step for number in reported)
    skips.settle()
    return reported


def test_skipped_steps_are_counted_in_all_and_in_a_row():
    progress = Progress()
    assert run(".xx.x", 3, progress) == [2, 3, 5]
    assert (progress.skipped_steps, progress.skipped_in_a_row) == (3, 1)
    # The count continues after a restart.
    with pytest.raises(UserError, match=r"no step from 0 to 2 .*max_skipped_steps=3"):
        run("xx", 3, progress)


def test_too_many_in_a_row_stop_the_run_and_name_the_steps():
    with pytest.raises(UserError, match=r"no step from 3 to 4 .*init_from"):
        run("..xx..", 2, Progress())
    assert run("x.x.x.x", 2, Progress()) == [1, 3, 5, 7]


def test_skipped_steps_do_not_reach_the_means():
    window = Window()
    for loss, skipped in ((1.0, False), (math.nan, True), (2.0, False), (math.inf, True)):
        window.add(metrics(loss, skipped))
    values = window.summarize(batch_size=4)
    assert values["loss"] == 1.5
    assert values["grad_norm"] == 3.0
    assert values["loss_by_logsnr"] == dict.fromkeys(BUCKETS, 1.5)


def test_a_window_without_a_good_step_has_no_loss():
    window = Window()
    window.add(metrics(math.nan, skipped=True))
    assert set(window.summarize(batch_size=4)) == {"images_per_second", "data_wait_share"}


def test_a_saved_window_continues_with_the_same_means():
    losses = np.random.default_rng(0).random(7).astype(np.float32)
    whole, first = Window(), Window()
    for index, loss in enumerate(losses):
        whole.add(metrics(loss))
        if index < 4:
            first.add(metrics(loss))
    first.add(metrics(math.nan, skipped=True))
    rest = Window(first.saved())
    for loss in losses[4:]:
        rest.add(metrics(loss))
    for name in ("loss", "grad_norm", "loss_by_logsnr"):
        assert rest.summarize(4)[name] == whole.summarize(4)[name]


def test_pauses_are_not_time_of_the_steps():
    window = Window()
    window.add(metrics(1.0))
    with window.paused():
        time.sleep(0.3)
    # One step of 30 pictures in far less than the pause.
    assert window.summarize(batch_size=30)["images_per_second"] > 100


def bad(number: int, filtered: int = 0) -> dict[str, dict[str, int]]:
    groups = {"bad": {"truncated picture": number}, "filtered": {"picture too small": filtered}}
    return {name: {k: n for k, n in kinds.items() if n} for name, kinds in groups.items()}


def test_left_out_items_are_counted_by_kind():
    progress = Progress(bad_items=2, bad_by_kind={"empty file": 2})
    counter = LeftOutItems(progress, 0.1, Agreement())
    for left_out in (bad(1), bad(0), bad(2, 5)):
        counter.add(left_out, 50)
    for _ in range(2):  # counts once
        counter.settle()
        assert progress.bad_items == 5
    assert progress.bad_by_kind == {"empty file": 2, "truncated picture": 3}
    assert progress.filtered_by_kind == {"picture too small": 5}


def test_too_many_bad_items_stop_the_run():
    def settle(limit, left_out, rows, **counters):
        counter = LeftOutItems(Progress(**counters), limit, Agreement())
        counter.add(left_out, rows)
        counter.settle()

    with pytest.raises(UserError, match=r"12 of 112 pictures(.|\n)*12 truncated picture"):
        settle(0.1, bad(12), 100)
    settle(0.1, bad(10, 10_000), 100)  # filtered pictures are not bad
    settle(0.1, bad(40), 50)  # too few pictures for a share
    settle(1.0, bad(10_000), 1)
    # Faults that an earlier process counted may have been corrected.
    settle(0.1, bad(1), 100, bad_items=10_000)
