"""Taking turns: programs of several libraries timed one after the other, each in its own process.

A `Subject` offers programs under agreed names. Each subject lives in a worker process of its own,
so that its memory can be told apart and no thread pool is shared; `alternate` lets the workers run
one at a time (a, b, a, b, ...), so that whatever else slows the machine down meets them alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

TRAIN, DENOISE, MATMUL, CONVOLUTION = "train step", "denoising step", "matmul", "convolution"
PEAK_PROGRAMS = (MATMUL, CONVOLUTION)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a program without running it.

    Attributes:
      units: what a call makes: pictures of a train step, pictures x steps of a sampler.
      matrix_flops: floating-point operations of its convolutions and matrix products per unit, a
        multiply-add being two; the same definition for every library.
      xla_flops: what XLA says of the whole program, per unit (loops count once).
      compile_seconds: tracing, lowering and compiling.
      program_bytes: arguments, results and temporaries that the compiled program holds at once.
    """

    units: int
    matrix_flops: float
    xla_flops: float | None = None
    compile_seconds: float | None = None
    program_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """`run(count)` calls the program `count` times and returns when the results are there."""

    facts: Facts
    run: Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A library with a network: its programs by name."""

    device: str
    parameters: int
    programs: dict[str, Program]


@dataclasses.dataclass(frozen=True)
class Result:
    """A program of a subject, measured.

    Attributes:
      facts: see `Facts`.
      seconds: of one call, one number a round.
      peak_bytes: high-water mark of the process during the rounds, less what it held before the
        subject was built; None where the system does not tell.
    """

    facts: Facts
    seconds: list[float]
    peak_bytes: int | None

    @property
    def rates(self) -> list[float]:
        """Units per second, one number a round."""
        return [self.facts.units / seconds for seconds in self.seconds]


class Worker:
    """A process that holds one subject.

    Args:
      name: of the subject, in tables.
      build: a function at the top level of a module that returns the subject.
      threads: the process is kept to that many cores (0: all).
      arguments: passed to `build`; they must pickle.
    """

    def __init__(
        self, name: str, build: Callable[..., Subject], threads: int, arguments: Sequence[Any]
    ):
        self.name = name
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        described = self._pool.submit(_build, build, threads, arguments).result()
        self.device, self.parameters, self.facts = described

    def run(self, program: str, count: int) -> tuple[float, int | None]:
        """Seconds of `count` calls and peak bytes of the process meanwhile."""
        return self._pool.submit(_run, program, count).result()

    def close(self) -> None:
        """Ends the process."""
        self._pool.shutdown()


_subject: Subject | None = None
_bytes_before = 0


def _build(
    build: Callable[..., Subject], threads: int, arguments: Sequence[Any]
) -> tuple[str, int, dict[str, Facts]]:
    global _subject, _bytes_before
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads:
        # Before any library counts the cores. All of them obey, whatever their own settings are.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # Several subjects may share an accelerator.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    _bytes_before = process_bytes("VmRSS") or 0
    _subject = build(*arguments)
    facts = {name: program.facts for name, program in _subject.programs.items()}
    return _subject.device, _subject.parameters, facts


def _end_with_parent() -> None:
    # A worker of a benchmark that was killed would wait for its next call for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


def _run(program: str, count: int) -> tuple[float, int | None]:
    reset_peak()
    start = time.perf_counter()
    _subject.programs[program].run(count)
    seconds = time.perf_counter() - start
    peak = process_bytes("VmHWM")
    return seconds, None if peak is None else peak - _bytes_before


def process_bytes(field: str) -> int | None:
    """`VmRSS` (resident now) or `VmHWM` (the most since `reset_peak`) of this process; on Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    values = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(values[0]) if values else None


def reset_peak() -> None:
    """Starts the high-water mark of this process anew, where the system lets it."""
    # Where it does not, the mark is that of the whole life of the process.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def alternate(
    workers: Sequence[Worker], rounds: int, seconds: float
) -> dict[str, dict[str, Result]]:
    """Times all programs of all workers in turns.

    Args:
      workers: offer the same programs.
      rounds: how often each program of each worker is timed.
      seconds: about how long each time; the programs that find the matrix peak take a quarter.

    Returns:
      Results by name of worker, then by name of program.
    """
    programs = list(workers[0].facts)
    counts, timed, peaks = {}, {}, {}
    for program in programs:
        for worker in workers:
            key = worker.name, program
            worker.run(program, 1)  # warm-up
            single, _ = worker.run(program, 1)
            aim = seconds / 4 if program in PEAK_PROGRAMS else seconds
            counts[key], timed[key], peaks[key] = max(1, round(aim / single)), [], []
    for _ in range(rounds):
        for program in programs:
            for worker in workers:
                key = worker.name, program
                total, peak = worker.run(program, counts[key])
                timed[key].append(total / counts[key])
                peaks[key].append(peak)
    return {
        worker.name: {
            program: Result(
                facts=worker.facts[program],
                seconds=timed[worker.name, program],
                peak_bytes=max((p for p in peaks[worker.name, program] if p), default=None),
            )
            for program in programs
        }
        for worker in workers
    }


def matrix_peak(results: dict[str, dict[str, Result]]) -> float:
    """FLOP/s of the fastest round of a large matrix product or convolution, in any library."""
    return max(
        of_subject[program].facts.matrix_flops / min(of_subject[program].seconds)
        for of_subject in results.values()
        for program in PEAK_PROGRAMS
    )


def speed_ratio(first: Result, second: Result) -> tuple[float, float, float]:
    """How many times faster `first` is, with a 95 % interval.

    Returns:
      The median over the rounds of the ratio of units per second, and its percentile bootstrap
      interval. Rounds are compared with their neighbours, which met the same machine.
    """
    import numpy as np
    from scipy import stats

    ratios = np.divide(first.rates, second.rates)
    if len(ratios) < 2:
        return float(ratios[0]), float(ratios[0]), float(ratios[0])
    interval = stats.bootstrap(
        (ratios,), np.median, n_resamples=2000, method="percentile", rng=0
    ).confidence_interval
    return float(np.median(ratios)), float(interval.low), float(interval.high)


# --- tables -----------------------------------------------------------------------------------


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads in a terminal as in a document."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mega(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f} MB"


def results_table(results: dict[str, dict[str, Result]], parameters: dict[str, int]) -> str:
    """One row per program and subject."""
    peak, rows = matrix_peak(results), []
    for program in next(iter(results.values())):
        for name, of_subject in results.items():
            result = of_subject[program]
            facts, rate = result.facts, statistics.median(result.rates)
            speed = rate * facts.matrix_flops
            is_peak = program in PEAK_PROGRAMS
            spread = f"{rate:,.1f} ({min(result.rates):,.1f} to {max(result.rates):,.1f})"
            compiling = facts.compile_seconds
            rows.append(
                [
                    program,
                    name,
                    "" if is_peak else f"{parameters[name] / 1e6:.2f} M",
                    "" if is_peak else f"{facts.matrix_flops / 1e9:.3f}",
                    "" if is_peak else spread,
                    f"{speed / 1e9:,.0f}",
                    f"{100 * speed / peak:.0f} %",
                    "" if is_peak else _mega(facts.program_bytes),
                    "" if is_peak else _mega(result.peak_bytes),
                    "" if is_peak or compiling is None else f"{compiling:.1f} s",
                ]
            )
    header = ("program", "", "parameters", "GFLOP/image", "images/s (spread)", "GFLOP/s")
    header += ("of the peak", "program memory", "process memory", "compilation")
    return markdown_table(header, rows)


def ratio_table(results: dict[str, dict[str, Result]], parameters: dict[str, int]) -> str:
    """The first subject over the second: speed, work, parameters, memory."""
    (first, ours), (second, theirs) = results.items()
    rows = []
    for program in ours:
        if program in PEAK_PROGRAMS:
            continue
        ratio, low, high = speed_ratio(ours[program], theirs[program])
        work = ours[program].facts.matrix_flops / theirs[program].facts.matrix_flops
        memories = [result.peak_bytes for result in (ours[program], theirs[program])]
        rows.append(
            [
                program,
                f"{ratio:.2f} ({low:.2f} to {high:.2f})",
                f"{work:.2f}",
                f"{parameters[first] / parameters[second]:.2f}",
                f"{memories[0] / memories[1]:.2f}" if all(memories) else "",
            ]
        )
    header = [f"{first} over {second}", "images/s (95 % interval)", "FLOPs", "parameters"]
    return markdown_table([*header, "process memory"], rows)


def as_json(results: dict[str, dict[str, Result]]) -> dict[str, Any]:
    """Everything that was measured, for `json.dump`."""
    return {
        name: {program: dataclasses.asdict(result) for program, result in of_subject.items()}
        for name, of_subject in results.items()
    }
