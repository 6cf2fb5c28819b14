"""Loaders take turns, stand still in between, and are compared round by round."""

import itertools
import statistics
import time
from pathlib import Path

import pytest

from benchmarks.loader_turns import Contestant, Turn, median_interval, summary, table

SERVER = """
import sys, time
from benchmarks.loader_turns import serve

def start(resolution, batch):
    with open(sys.argv[1], "ab", buffering=0) as log:
        while True:
            time.sleep(0.002)
            log.write(b".")
            print("noise on the standard output")
            yield None

serve(start, workers=2)
"""


@pytest.mark.parametrize("count", range(2, 12))
def test_the_interval_of_a_median_covers_it(count):
    low, high = median_interval([float(i) for i in range(count)])
    assert low + high == count - 1
    # Each value lies below or above the true median, all combinations with equal probability.
    ways = list(itertools.product((0, 1), repeat=count))

    def covered(low, high):
        """Probability that the median lies between values `low` and `high`, counted from 0."""
        return sum(low < sum(way) <= high for way in ways) / len(ways)

    if count >= 6:
        assert covered(low, high) >= 0.95 > covered(low + 1, high - 1)
    else:
        assert (low, high) == (0, count - 1)


def test_ratios_compare_turns_of_the_same_round():
    turns = {
        "peer": [Turn(100, 1.0, 2.0), Turn(50, 1.0, 1.0), Turn(300, 2.0, 4.0)],
        "ours": [Turn(200, 1.0, 1.0), Turn(150, 1.0, 1.5), Turn(150, 1.0, 3.0)],
    }
    rows = summary(turns, "peer")
    assert rows["peer"]["ratio"] == rows["peer"]["ratio_low"] == 1.0
    assert rows["ours"] == pytest.approx(
        {
            "images_per_second": statistics.median([200, 150, 150]),
            "ratio": 2.0,  # the median of 2, 3 and 1; the ratio of the medians would be 1.5
            "ratio_low": 1.0,
            "ratio_high": 3.0,
            "cpu_ms_per_image": 10.0,
        }
    )
    assert table(rows, "8 pixels", "peer").splitlines()[-1] == (
        "| ours | 150 | 2.00 | 1.00 to 3.00 | 10.0 |"
    )


def test_a_loader_stands_still_between_its_turns(tmp_path, monkeypatch):
    (tmp_path / "server.py").write_text(SERVER)
    log = tmp_path / "log"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    contestant = Contestant([str(tmp_path / "server.py"), str(log)])
    try:
        contestant.begin(8, batch=3)
        contestant.wait()
        for _ in range(2):
            time.sleep(0.05)  # until the signal arrives
            read = log.stat().st_size
            time.sleep(0.05)
            assert log.stat().st_size == read  # it reads nothing
            turn = contestant.turn(settle=0.05, seconds=0.1)
            # Only pictures of the timed part count, in whole rounds of two batches of three.
            assert turn.images % 6 == 0 and turn.seconds >= 0.1
            assert 12 <= turn.images <= 3 * (log.stat().st_size - read - 4)
            assert turn.rate < 3 / 0.002 and 0 <= turn.cpu_seconds < 2 * turn.seconds
    finally:
        contestant.close()
    assert not Path(f"/proc/{contestant._process.pid}").exists()


def test_a_failed_loader_is_an_error(tmp_path):
    (tmp_path / "server.py").write_text("raise SystemExit(3)")
    contestant = Contestant([str(tmp_path / "server.py")])
    try:
        with pytest.raises((RuntimeError, BrokenPipeError)):
            contestant.begin(8, batch=1)
            contestant.wait()
    finally:
        contestant.close()
