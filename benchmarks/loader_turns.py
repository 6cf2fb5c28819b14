"""Loaders that take turns: each in processes of its own, which stand still between its turns.

A loader reads ahead. If it went on while another is timed it would slow that one down and then
give what it has read for nothing, and a loader that starts after a pause fills its buffers first.
So each lives in a process group of its own, which is stopped (SIGSTOP) the moment its turn ends
and goes on (SIGCONT) with its next, its buffers as they were; and the first moments of a turn,
in which caches become warm again, are not counted.
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

# A loader that says nothing for so long has failed: seconds.
PATIENCE = 600.0


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a loader did in one turn: pictures, and seconds of the clock and of all its CPUs."""

    images: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.images / self.seconds


class Contestant:
    """A loader in a process group of its own; it stands still but in `start` and `turn`.

    Args:
      arguments: of a Python program that calls `serve`.
    """

    def __init__(self, arguments: Sequence[str]):
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # In this session: if this program dies, the system wakes and ends the group.
            process_group=0,
        )
        self._received = b""

    def begin(self, resolution: int, batch: int) -> None:
        """Tells it to start reading; several may do so at once. `wait` must follow."""
        self._signal(signal.SIGCONT)
        self._tell({"resolution": resolution, "batch": batch})

    def wait(self) -> None:
        """Until its first batches have come."""
        self._answer()
        self._signal(signal.SIGSTOP)

    def turn(self, settle: float, seconds: float) -> Turn:
        """Reads as fast as it can for so long; of that the first `settle` seconds do not count."""
        self._signal(signal.SIGCONT)
        self._tell({"settle": settle, "seconds": seconds})
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return Turn(**answer)

    def close(self) -> None:
        """Ends it and its workers."""
        for number in (signal.SIGKILL, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                self._signal(number)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def _tell(self, message: dict) -> None:
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self) -> dict:
        end = time.monotonic() + PATIENCE
        while b"\n" not in self._received:
            left = end - time.monotonic()
            if left < 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise TimeoutError(f"{self._process.args} has said nothing for {PATIENCE} s")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise RuntimeError(f"{self._process.args} has ended: {self._process.wait()}")
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        return json.loads(line)


def serve(start: Callable[[int, int], Iterator], workers: int) -> None:
    """The other side of `Contestant`: does what its standard input says until that ends.

    Args:
      start: from resolution and batch size to an endless stream of batches.
      workers: batches come in rounds of so many.
    """
    # Whatever is printed goes to the terminal, only answers to the other side.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    stream: Iterator = iter(())
    batch = 0

    def read(seconds: float) -> Turn:
        """Whole rounds of the workers, two at least, which take about so long."""
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
    """CPU time so far of all processes in this one's group, as Linux counts it."""
    group, total = os.getpgrp(), 0
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            # The program's name, in brackets, may have blanks in it.
            fields = file.read().rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


# --- arithmetic -------------------------------------------------------------------------------


def median_interval(values: Sequence[float], coverage: float = 0.95) -> tuple[float, float]:
    """A confidence interval of the median, between two of the values; of any distribution.

    The narrowest symmetric one of at least that coverage, which needs six values (for 0.95); of
    fewer it is the least and the greatest.
    """
    ordered = sorted(values)
    # The interval misses the median if `cut` values at most are below it, or above it; each value
    # is below it with chance 1/2.
    outside, cut = 0.0, 0
    for below in range(len(ordered) // 2):
        outside += 2 * math.comb(len(ordered), below) / 2 ** len(ordered)
        if outside > 1 - coverage:
            break
        cut = below
    return ordered[cut], ordered[-1 - cut]


def summary(turns: dict[str, list[Turn]], peer: str) -> dict[str, dict[str, float]]:
    """By name: the medians of rate, CPU ms a picture and ratio to the peer's turn of that round."""
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
    """What `summary` gives, as Markdown."""
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
