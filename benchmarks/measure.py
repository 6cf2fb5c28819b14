"""Times programs of several libraries in turns, each library in its own process.

A `Subject` is a library with its programs by name. Each subject has a worker process of its own,
so that its memory is measured alone and no thread pool is shared. `alternate` runs the workers one
at a time (a, b, a, b, ...), so that other load on the machine slows all of them alike.
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
    """Properties of a program that need no run.

    Attributes:
      units: units of work a call: pictures for a train step, pictures x steps for a sampler.
      matrix_flops: floating-point operations of convolutions and matrix products per unit; a
        multiply-add counts as two. Every library uses this definition.
      xla_flops: XLA's count for the whole program, per unit (a loop counts once).
      compile_seconds: time for tracing, lowering and compiling.
      program_bytes: memory of arguments, results and temporaries of the compiled program.
    """

    units: int
    matrix_flops: float
    xla_flops: float | None = None
    compile_seconds: float | None = None
    program_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """`run(count)` calls the program `count` times and waits for the results."""

    facts: Facts
    run: Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A library with one network, and its programs by name."""

    device: str
    parameters: int
    programs: dict[str, Program]


@dataclasses.dataclass(frozen=True)
class Result:
    """The measurements of one program of a subject.

    Attributes:
      facts: see `Facts`.
      seconds: time of one call, one number a round.
      peak_bytes: peak memory of the process during the rounds, less its memory before the subject
        was built; None on systems that do not report it.
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
      name: the subject's name in tables.
      build: a module-level function that returns the subject.
      threads: number of cores that the process may use (0: all).
      arguments: arguments of `build`; they must pickle.
    """

    def __init__(
        self, name: str, build: Callable[..., Subject], threads: int, arguments: Sequence[Any]
    ):
        self.name = name
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        described = self._pool.submit(_build, build, threads, arguments).result()
        self.device, self.parameters, self.facts = described

    def run(self, program: str, count: int) -> tuple[float, int | None]:
        """Seconds for `count` calls, and peak bytes of the process during them."""
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
        # This must happen before any library counts the cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # Several subjects may share one accelerator.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    _bytes_before = process_bytes("VmRSS") or 0
    _subject = build(*arguments)
    facts = {name: program.facts for name, program in _subject.programs.items()}
    return _subject.device, _subject.parameters, facts


def _end_with_parent() -> None:
    # Without this, a worker would wait forever after its benchmark was killed.
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
    """`VmRSS` (resident memory) or `VmHWM` (its peak since `reset_peak`); None if not on Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    values = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(values[0]) if values else None


def reset_peak() -> None:
    """Resets the peak memory of this process, where the system allows it."""
    # Elsewhere the peak is that of the whole life of the process.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def alternate(
    workers: Sequence[Worker], rounds: int, seconds: float
) -> dict[str, dict[str, Result]]:
    """Times all programs of all workers in turns.

    Args:
      workers: workers with the same programs.
      rounds: number of timings for each program of each worker.
      seconds: approximate time of one timing; the programs that find the peak take a quarter.

    Returns:
      Results by the worker's name, then by the program's name.
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
    """Peak FLOP/s: the fastest round of a large matrix product or convolution in any library."""
    return max(
        of_subject[program].facts.matrix_flops / min(of_subject[program].seconds)
        for of_subject in results.values()
        for program in PEAK_PROGRAMS
    )


def speed_ratio(first: Result, second: Result) -> tuple[float, float, float]:
    """Units per second of `first` over those of `second`, with a 95 % interval.

    Returns:
      The median over the rounds of the ratio in that round, and its percentile bootstrap interval.
      Both timings of a round are neighbours in time and so under the same load.
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
    """A Markdown table."""
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
    """Ratios of the first subject to the second: speed, FLOPs, parameters, memory."""
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
    """All measurements, for `json.dump`."""
    return {
        name: {program: dataclasses.asdict(result) for program, result in of_subject.items()}
        for name, of_subject in results.items()
    }
