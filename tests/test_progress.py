"""The progress of drawing: rates by stage, without the time of compilation."""

import pytest

from imagen_jax.progress import DrawingProgress


def test_compilation_is_told_and_does_not_count():
    now, seen = [0.0], []
    progress = DrawingProgress(
        seen.append,
        totals={"base": 8, "sr": 8},
        done={"base": 0, "sr": 4},
        costs={"base": 1.0, "sr": 3.0},
        clock=lambda: now[0],
    )
    with progress.compiling("base"):
        assert (seen[-1].stage, seen[-1].compiling, seen[-1].seconds_left) == ("base", True, None)
        now[0] += 100
    assert not seen[-1].compiling
    now[0] += 2
    progress.add("base", 4)
    # 0.5 s a picture; the other stage is taken to cost three times that: 4 x 0.5 + 4 x 1.5.
    assert seen[-1].seconds_left == pytest.approx(8.0)
    assert (seen[-1].done, seen[-1].total) == (4, 8)
    assert seen[-1].share == pytest.approx((4 + 12) / 32)
    with progress.compiling("sr"):
        now[0] += 50
    now[0] += 1
    progress.add("sr", 2)
    # Measured: 0.5 s each; 4 of base and 2 of sr are left.
    assert seen[-1].seconds_left == pytest.approx(4 * 0.5 + 2 * 0.5)
