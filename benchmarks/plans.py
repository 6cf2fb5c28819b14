"""Plans the stages of configs/imagen.py for several TPU slices; prints the table of docs/scale.md.

    python -m benchmarks.plans
    python -m benchmarks.plans --only=base,v5e

Each row is one call of `imagen_jax.cli.plan`, which keeps its plans: an interrupted run starts
again where it stopped. The slowest base took 69 minutes to compile, the slowest other stage 12
minutes. `--only` plans the rows whose stage and slice contain one of the words.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

GIB = 2**30
COLUMNS = (
    "stage", "slice", "chips", "GiB a chip", "data x fsdp", "sent, GiB a chip and step",
    "images/s", "days to 2.5 M steps",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One call of the planner.

    Attributes:
      stage, topology: as the planner takes them.
    """

    stage: str
    topology: str

    def arguments(self) -> list[str]:
        """The arguments of the planner."""
        return [
            "--config=configs/imagen.py",
            f"--stage={self.stage}",
            f"--topology={self.topology}",
            "--text_dim=4096",
            "--effort=low",
        ]


# The paper trained its base on 256 TPU v4 and its super-resolution stages on 128 (section 4.1).
PAPER = {"base": "v4:8x8x4", "sr256": "v4:4x4x8", "sr1024": "v4:4x4x8"}
ROWS = [
    Row(stage, topology)
    for stage, paper in PAPER.items()
    for topology in (paper, "v5e:16x16", "v5p:4x4x4", "v6e:8x8")
]


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 1 if a row could not be planned."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plans", allow_abbrev=False)
    parser.add_argument("--only", default="", metavar="WORDS", help="comma-separated, such as base")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds a row")
    flags = parser.parse_args(arguments)
    words = [word for word in flags.only.split(",") if word]
    rows = [row for row in ROWS if chosen(row, words)]
    if not rows:
        parser.error(f"--only={flags.only}: no row contains one of these words")
    print(markdown(COLUMNS))
    print(markdown(["---"] * len(COLUMNS)))
    failed = 0
    for row in rows:
        plan = run_planner(row, flags.timeout)
        if plan is None:
            failed += 1
        else:
            print(markdown(cells(plan)), flush=True)
    return 1 if failed else 0


def chosen(row: Row, words: Sequence[str]) -> bool:
    """Whether the row's stage or slice contains one of the words, or there are no words."""
    return not words or any(word in f"{row.stage} {row.topology}" for word in words)


def run_planner(row: Row, timeout: float) -> dict[str, Any] | None:
    """The planner's output for a row. None, with the reason on stderr, if it did not finish."""
    command = [sys.executable, "-m", "imagen_jax.cli.plan", *row.arguments(), "--json"]
    print(f"{shlex.join(command)} ...", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, timeout=timeout, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        print(f"stopped after {timeout:.0f} s; raise --timeout", file=sys.stderr)
        return None
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    return json.loads(done.stdout)


def cells(plan: dict[str, Any]) -> list[Any]:
    """The cells of a plan, in the order of `COLUMNS`; a plan that does not fit has no times."""
    memory, mesh = plan["memory"], plan["mesh"]
    needed = f"{memory['needed_bytes'] / GIB:.1f}" if memory["needed_bytes"] else "?"
    size = f"{needed} of {memory['available_bytes'] / GIB:.2f}"
    row = [
        plan["stage"],
        plan["topology"],
        plan["chips"],
        size if plan["fits"] else f"**does not fit**: {size}",
        f"{mesh['data']} x {mesh['fsdp']}",
    ]
    if not plan["estimate"]:
        return row + [""] * (len(COLUMNS) - len(row))
    sent = sum(collective["bytes"] for collective in plan["collectives"])
    return [
        *row,
        f"{sent / GIB:.2f}",
        f"{plan['images_per_second']:,.0f}",
        f"{plan['days']:.1f}",
    ]


def markdown(row: Iterable[Any]) -> str:
    """One line of a table."""
    return f"| {' | '.join(str(cell) for cell in row)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
