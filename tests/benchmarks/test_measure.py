"""Timing in turns, ratios and tables."""

import json
import time

import pytest

from benchmarks import measure
from benchmarks.measure import Facts, Program, Result, Subject, Worker

FACTS = Facts(units=4, matrix_flops=1e9)


class Clock:
    """Stands in for a worker: takes a fixed time and records its calls."""

    def __init__(self, name: str, seconds: float, log: list[tuple[str, str, int]]):
        self.name, self.seconds, self.log = name, seconds, log
        self.facts = dict.fromkeys((measure.MATMUL, measure.TRAIN), FACTS)

    def run(self, program: str, count: int) -> tuple[float, int | None]:
        self.log.append((self.name, program, count))
        return self.seconds * count, None


def sleepy(milliseconds: int) -> Subject:
    def run(count: int) -> None:
        time.sleep(count * milliseconds / 1000)

    return Subject(device="none", parameters=7, programs={measure.TRAIN: Program(FACTS, run)})


def test_workers_take_turns():
    log = []
    workers = [Clock("a", 0.1, log), Clock("b", 0.5, log)]
    results = measure.alternate(workers, rounds=2, seconds=1.0)
    # After two calls of each (a warm-up, and one to choose the number of calls): 1 s of a train
    # step, a quarter of that for the programs that find the peak.
    one_round = [
        ("a", measure.MATMUL, 2),
        ("b", measure.MATMUL, 1),
        ("a", measure.TRAIN, 10),
        ("b", measure.TRAIN, 2),
    ]
    assert log[8:] == 2 * one_round
    assert results["b"][measure.TRAIN].seconds == [0.5, 0.5]
    assert results["a"][measure.TRAIN].rates == pytest.approx([40.0, 40.0])
    assert json.loads(json.dumps(measure.as_json(results)))["a"][measure.TRAIN]["seconds"]


def test_a_worker_is_its_own_process():
    worker = Worker("sleeper", sleepy, 1, (20,))
    try:
        assert (worker.parameters, worker.facts) == (7, {measure.TRAIN: FACTS})
        seconds, _ = worker.run(measure.TRAIN, 3)
    finally:
        worker.close()
    assert 0.06 <= seconds < 1.0  # three sleeps; the machine may be busy


def test_ratio_compares_neighbouring_rounds():
    # The machine becomes ten times slower half-way; the first stays twice as fast.
    first = Result(FACTS, [1.0, 1.0, 10.0, 10.0], None)
    second = Result(FACTS, [2.0, 2.0, 20.0, 20.0], None)
    assert measure.speed_ratio(first, second) == pytest.approx((2.0, 2.0, 2.0))
    uneven = Result(FACTS, [2.0, 3.0, 20.0, 30.0], None)
    ratio, low, high = measure.speed_ratio(first, uneven)
    assert low == pytest.approx(2.0) and ratio == pytest.approx(2.5) and high == pytest.approx(3.0)


def test_tables_give_medians_and_the_share_of_the_peak():
    def results(seconds: float) -> dict[str, Result]:
        return {
            measure.MATMUL: Result(Facts(1, 8e9), [1.0, 2.0], None),
            measure.CONVOLUTION: Result(Facts(1, 8e9), [1.5, 1.5], None),
            measure.TRAIN: Result(FACTS, [seconds, seconds, 9.0], 10**9),
        }

    both, parameters = {"a": results(1.0), "b": results(2.0)}, {"a": 3_000_000, "b": 6_000_000}
    table = measure.results_table(both, parameters)
    # 4 pictures of 1 GFLOP in 1 s; the peak is 8 GFLOP/s.
    assert "| train step | a | 3.00 M | 1.000 | 4.0 (0.4 to 4.0) | 4 | 50 % |" in table
    rows = [line.count("|") for line in table.splitlines()]
    assert len(set(rows)) == 1
    ratios = measure.ratio_table(both, parameters)
    assert "| train step | 2.00 (1.00 to 2.00) | 1.00 | 0.50 | 1.00 |" in ratios
