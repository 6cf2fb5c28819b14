"""Plans the stages of a cascade for many slices and writes the table of docs/scale.md.

    python -m benchmarks.plans --out=docs/scale.md

Each row is one call of `imagen_jax.cli.plan`, whose command is printed below the table; programs
that were compiled before come from its cache. A program that takes longer than `--timeout` seconds
is listed as missing, and the next call tries again. `--only=base,v5e` takes the rows whose stage
and slice contain one of the words.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Row:
    """One call of the planner.

    Attributes:
      table: the table that it belongs to.
      stage, topology: as the planner takes them.
      note: what distinguishes it from the others, such as a remat policy.
      overrides: further flags.
    """

    table: str
    stage: str
    topology: str
    note: str = ""
    overrides: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """The planner's arguments."""
        return [
            "--config=configs/imagen.py",
            f"--stage={self.stage}",
            f"--topology={self.topology}",
            "--text_dim=4096",
            "--effort=low",
            *self.overrides,
        ]


PAPER = {"base": "v4:8x8x4", "sr256": "v4:4x4x8", "sr1024": "v4:4x4x8"}
PLANS = [
    Row("plans", stage, topology)
    for stage, paper in PAPER.items()
    for topology in (paper, "v5e:16x16", "v5p:4x4x4", "v6e:8x8")
]
# The base with a quarter of its width, so that it compiles in minutes; 8 pictures a chip as in the
# paper's batch on 256 chips, and the state cut in 4 as it is for the whole base.
NARROW = "--config.stages.base.model.channels=(128,256,384,512)"
SCALING = [
    Row(
        "scaling",
        "base",
        topology,
        "quarter width",
        (NARROW, f"--config.stages.base.train.batch_size={8 * chips}", "--config.mesh.fsdp=4"),
    )
    for topology, chips in (("v4:2x2x2", 8), ("v4:4x4x4", 64), ("v4:8x8x4", 256))
]


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plans", allow_abbrev=False)
    parser.add_argument("--out", type=Path, metavar="FILE", help="a file with the tables' marks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the plans themselves")
    parser.add_argument("--only", default="", metavar="WORDS", help="rows, by comma")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds a row")
    flags = parser.parse_args(arguments)
    words = [word for word in flags.only.split(",") if word]
    done: list[tuple[Row, dict[str, Any] | None]] = []
    for row in PLANS + SCALING:
        name = f"{row.stage} {row.topology} {row.note}"
        if words and not any(word in name for word in words):
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        done.append((row, plan(row, flags.timeout)))
    tables = {"plans": plans_table(done), "scaling": scaling_table(done)}
    if flags.json:
        plans = [{"command": shown(row), "plan": have} for row, have in done]
        flags.json.write_text(json.dumps(plans, indent=1) + "\n")
    if flags.out:
        text = flags.out.read_text()
        for name, table in tables.items():
            text = replace_between(text, name, table)
        flags.out.write_text(text)
    else:
        print("\n\n".join(tables.values()))
    return 0


def plan(row: Row, timeout: float) -> dict[str, Any] | None:
    """What the planner prints for a row; None if it did not finish."""
    command = [sys.executable, "-m", "imagen_jax.cli.plan", *row.command(), "--json"]
    try:
        done = subprocess.run(command, timeout=timeout, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    return json.loads(done.stdout)


def plans_table(done: Iterable[tuple[Row, dict[str, Any] | None]]) -> str:
    """Markdown: one line a plan, then the commands, then what is missing."""
    columns = (
        "stage", "slice", "chips", "data x fsdp", "batch (a chip)", "kept or computed again",
        "GiB a chip, of", "of it state", "fits", "sent, GiB a chip and step", "PFLOP a step",
        "s a step", "bound", "images/s", "days to 2.5 M", "effort",
    )  # fmt: skip
    rows = [(row, have) for row, have in done if row.table == "plans"]
    lines = [markdown(columns), markdown(["---"] * len(columns))]
    for row, have in rows:
        if have is None:
            continue
        memory, mesh, expected = have["memory"], have["mesh"], have["estimate"]
        needed = memory["needed_bytes"]
        cells = [
            row.stage,
            row.topology,
            have["chips"],
            f"{mesh['data']} x {mesh['fsdp']}",
            f"{have['batch_size']} ({have['batch_size'] // have['chips']})",
            row.note or "scanned blocks again",
            f"{needed / GIB:.1f}, {memory['available_bytes'] / GIB:.2f}" if needed else "?",
            f"{memory['state_bytes'] / GIB:.2f}",
            "yes" if have["fits"] else "**no**",
            *(
                [
                    f"{sum(c['bytes'] for c in have['collectives']) / GIB:.2f}",
                    f"{have['model_flops'] / 1e15:.2f}",
                    f"{expected['seconds']:.3f}",
                    expected["bound"],
                    f"{have['images_per_second']:,.0f}",
                    f"{have['days']:.1f}",
                ]
                if expected
                else ["", f"{have['model_flops'] / 1e15:.2f}", "", "", "", ""]
            ),
            have["effort"],
        ]
        lines.append(markdown(cells))
    lines += ["", "Commands, in the order of the rows:", ""]
    lines += [f"    {shown(row)}" for row, have in rows if have]
    missing = [f"{row.stage} on {row.topology}" for row, have in rows if have is None]
    if missing:
        lines += ["", f"Not compiled yet: {', '.join(missing)}."]
    return "\n".join(lines)


def scaling_table(done: Iterable[tuple[Row, dict[str, Any] | None]]) -> str:
    """Markdown: bytes that a chip sends in a step, by kind, for slices of growing size."""
    rows = [(row, have) for row, have in done if row.table == "scaling"]
    found = [have for _, have in rows if have and have["collectives"] is not None]
    kinds = sorted({c["kind"] for have in found for c in have["collectives"]})
    columns = ("chips", "slice", "data x fsdp", "batch", *kinds, "MiB a chip and step")
    lines = [markdown(columns), markdown(["---"] * len(columns))]
    for have in found:
        sent = {c["kind"]: c["bytes"] / 2**20 for c in have["collectives"]}
        mesh = have["mesh"]
        lines.append(
            markdown(
                [
                    have["chips"],
                    have["topology"],
                    f"{mesh['data']} x {mesh['fsdp']}",
                    have["batch_size"],
                    *(f"{sent.get(kind, 0):,.1f}" for kind in kinds),
                    f"{sum(sent.values()):,.1f}",
                ]
            )
        )
    lines += ["", "Commands, in the order of the rows:", ""]
    lines += [f"    {shown(row)}" for row, have in rows if have]
    missing = [row.topology for row, have in rows if have is None]
    if missing:
        lines += ["", f"Not compiled yet: {', '.join(missing)}."]
    return "\n".join(lines)


def shown(row: Row) -> str:
    """The command of a row as a user types it."""
    return f"python -m imagen_jax.cli.plan {shlex.join(row.command())}"


def markdown(cells: Iterable[Any]) -> str:
    """One line of a table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def replace_between(text: str, name: str, table: str) -> str:
    """`text` with what is between the marks of `name` replaced.

    Raises:
      ValueError: the marks are not there.
    """
    start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    first, last = text.index(start) + len(start), text.index(end)
    return text[:first] + table + text[last:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
