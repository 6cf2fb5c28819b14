"""Times loaders in turns, each in its own process group, which is stopped between its turns.

Loaders read ahead. A loader that ran during another one's turn would slow that one down and gain
batches that its own timing does not see. So each process group is stopped (SIGSTOP) at the end of
its turn and continued (SIGCONT) with full buffers at the next. The first moments of a turn, while
caches warm up, do not count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

# Seconds without an answer after which a loader counts as failed.
PATIENCE = 600.0


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a loader: pictures read, wall time, and CPU time of all its processes."""

    images: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.images / self.seconds


class Contestant:
    """A loader in its own process group, which runs only from `begin` to `wait` and in `turn`.

    Args:
      arguments: command line of a Python program that calls `serve`.
    """

    def __init__(self, arguments: Sequence[str]):
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A group of this session: if this program dies, the system continues and ends it.
            process_group=0,
        )
        self._received = b""

    def begin(self, resolution: int, batch: int) -> None:
        """Starts reading; several loaders may start at once. `wait` must follow."""
        self._signal(signal.SIGCONT)
        self._send({"resolution": resolution, "batch": batch})

    def wait(self) -> None:
        """Waits for its first batches, then stops it."""
        self._answer()
        self._signal(signal.SIGSTOP)

    def turn(self, settle: float, seconds: float) -> Turn:
        """Reads for `settle` seconds that do not count, then for about `seconds` that do."""
        self._signal(signal.SIGCONT)
        self._send({"settle": settle, "seconds": seconds})
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return Turn(**answer)

    def close(self) -> None:
        """Ends the loader and its workers."""
        for number in (signal.SIGKILL, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                self._signal(number)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def _send(self, message: dict) -> None:
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self) -> dict:
        end = time.monotonic() + PATIENCE
        while b"\n" not in self._received:
            left = end - time.monotonic()
            if left < 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise TimeoutError(f"{self._process.args} has not answered for {PATIENCE} s")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise RuntimeError(f"{self._process.args} ended with status {self._process.wait()}")
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        return json.loads(line)


def serve(start: Callable[[int, int], Iterator], workers: int) -> None:
    """Runs the orders of a `Contestant` from standard input until it closes.

    Args:
      start: makes an endless stream of batches from resolution and batch size.
      workers: number of worker processes; timings cover whole rounds of one batch each.
    """
    # Printed text goes to the terminal; only answers go to the contestant.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    stream: Iterator = iter(())
    batch = 0

    def read(seconds: float) -> Turn:
        """Reads whole rounds of the workers, at least two, for about `seconds`."""
        cpu, begun, count = _group_cpu_seconds(), time.perf_counter(), 0
        while count < 2 * workers or count % workers or time.perf_counter() - begun < seconds:
            next(stream)
            count += 1
        passed = time.perf_counter() - begun
        return Turn(count * batch, passed, _group_cpu_seconds() - cpu)

    for line in sys.stdin:
        order = json.loads(line)
        if "resolution" in order:
            if hasattr(stream, "close"):
                stream.close()
            batch = order["batch"]
            stream = iter(())
            stream = start(order["resolution"], batch)
            answer = read(0.0)
        else:
            read(order["settle"])
            answer = read(order["seconds"])
        print(json.dumps(dataclasses.asdict(answer)), file=answers, flush=True)


def _group_cpu_seconds() -> float:
    """CPU seconds of all processes in this process group, from Linux's /proc."""
    group, total = os.getpgrp(), 0
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            # The program's name, in brackets, may contain spaces.
            fields = file.read().rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


# --- arithmetic -------------------------------------------------------------------------------


def median_interval(values: Sequence[float], coverage: float = 0.95) -> tuple[float, float]:
    """A confidence interval of the median between two of the values, for any distribution.

    It is the narrowest symmetric interval with at least that coverage. A coverage of 0.95 needs
    six values; with fewer, the interval is the whole range.
    """
    ordered = sorted(values)
    # The interval misses the median if at most `cut` values are below it, or above it. Each value
    # is below it with probability 1/2.
    outside, cut = 0.0, 0
    for below in range(len(ordered) // 2):
        outside += 2 * math.comb(len(ordered), below) / 2 ** len(ordered)
        if outside > 1 - coverage:
            break
        cut = below
    return ordered[cut], ordered[-1 - cut]


def summary(turns: dict[str, list[Turn]], peer: str) -> dict[str, dict[str, float]]:
    """Medians by name: rate, CPU ms a picture, ratio to the peer's turn of the same round."""
    found = {}
    for name, own in turns.items():
        ratios = [a.rate / b.rate for a, b in zip(own, turns[peer], strict=True)]
        low, high = median_interval(ratios)
        found[name] = {
            "images_per_second": statistics.median(turn.rate for turn in own),
            "ratio": statistics.median(ratios),
            "ratio_low": low,
            "ratio_high": high,
            "cpu_ms_per_image": 1e3
            * statistics.median(turn.cpu_seconds / turn.images for turn in own),
        }
    return found


def table(rows: dict[str, dict[str, float]], title: str, peer: str) -> str:
    """The result of `summary` as a Markdown table."""
    lines = [
        f"\n| {title} | images/s | against {peer} | interval | CPU ms a picture |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        interval = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}" if name != peer else ""
        lines.append(
            f"| {name} | {row['images_per_second']:,.0f} | {row['ratio']:.2f} | {interval} "
            f"| {row['cpu_ms_per_image']:.1f} |"
        )
    return "\n".join(lines)
