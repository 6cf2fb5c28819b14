"""Plans the stages of a cascade for many slices and writes the tables of docs/scale.md.

    python -m benchmarks.plans

Each row is one call of `imagen_jax.cli.plan`, whose command is printed below its table. What the
planner printed lies in docs/plans.json; only rows that are not there are planned, one after the
other, and each is written as soon as it is done. Take a row out of that file to plan it anew.
`--only=base,v5e` plans the missing rows whose stage and slice contain one of the words, and
`--only=none` none: the tables are written from what is there.
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
DOCS = Path(__file__).parent.parent / "docs"


@dataclasses.dataclass(frozen=True)
class Row:
    """One call of the planner.

    Attributes:
      table: the table that it belongs to, one of `TABLES`.
      stage, topology: as the planner takes them.
      accumulate: parts into which the batch is cut.
      flags: further ones, such as of a remat policy.
    """

    table: str
    stage: str
    topology: str
    accumulate: int = 1
    flags: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Of the planner."""
        stage = f"--config.stages.{self.stage}"
        return [
            "--config=configs/imagen.py",
            f"--stage={self.stage}",
            f"--topology={self.topology}",
            "--text_dim=4096",
            "--effort=low",
            *((f"{stage}.train.accumulate={self.accumulate}",) if self.accumulate > 1 else ()),
            *self.flags,
        ]

    def shown(self) -> str:
        """The command as a user types it."""
        return f"python -m imagen_jax.cli.plan {shlex.join(self.arguments())}"


PAPER = {"base": "v4:8x8x4", "sr256": "v4:4x4x8", "sr1024": "v4:4x4x8"}
PLANS = [
    Row("plans", stage, topology)
    for stage, paper in PAPER.items()
    for topology in (paper, "v5e:16x16", "v5p:4x4x4", "v6e:8x8")
]
# Some of the same with the state cut finer than by default.
CUTS = [
    Row("cuts", stage, topology, flags=("--config.mesh.data=-1", f"--config.mesh.fsdp={fsdp}"))
    for stage, topology, fsdp in (
        ("base", "v5e:16x16", 16),
        ("sr256", "v4:4x4x8", 4),
        ("sr1024", "v4:4x4x8", 4),
    )
]
# A small base, so that it compiles in minutes; 8 pictures a chip as in the paper's batch on 256
# chips, and the state cut in 4.
SMALL = (
    "--config.stages.base.model.channels=(128,256,384,512)",
    "--config.stages.base.model.num_res_blocks=(1,1,1,1)",
)
SCALING = [
    Row(
        "scaling",
        "base",
        topology,
        flags=(
            *SMALL,
            f"--config.stages.base.train.batch_size={8 * chips}",
            "--config.mesh.fsdp=4",
        ),
    )
    for topology, chips in (("v4:2x2x2", 8), ("v4:4x4x4", 64), ("v4:8x8x4", 256))
]
# What the backward pass repeats, and the batch in parts: the same small base, 32 pictures a chip.
REMAT = [
    Row(
        "remat",
        "base",
        "v5e:4x4",
        accumulate,
        (
            *SMALL,
            "--config.stages.base.train.batch_size=512",
            "--config.mesh.fsdp=4",
            f"--config.stages.base.model.remat={(policy,) * 4!r}".replace(" ", ""),
        ),
    )
    for policy, accumulate in (("none", 1), ("convs", 1), ("full", 1), ("full", 4), ("none", 4))
]
ROWS = PLANS + CUTS + SCALING + REMAT


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plans", allow_abbrev=False)
    parser.add_argument("--plans", type=Path, default=DOCS / "plans.json", metavar="FILE")
    parser.add_argument("--out", type=Path, default=DOCS / "scale.md", metavar="FILE")
    parser.add_argument("--only", default="", metavar="WORDS", help="missing rows, by comma")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds a row")
    flags = parser.parse_args(arguments)
    words = [word for word in flags.only.split(",") if word]
    plans = json.loads(flags.plans.read_text()) if flags.plans.exists() else {}
    for row in ROWS:
        wanted = not words or any(word in f"{row.stage} {row.topology}" for word in words)
        if row.shown() not in plans and wanted:
            print(f"{row.shown()} ...", file=sys.stderr, flush=True)
            have = plan(row, flags.timeout)
            if have is not None:
                plans[row.shown()] = have
                flags.plans.write_text(json.dumps(plans, indent=1) + "\n")
    text = flags.out.read_text()
    for name, table in TABLES.items():
        rows = [row for row in ROWS if row.table == name]
        found = [(row, plans[row.shown()]) for row in rows if row.shown() in plans]
        missing = [f"    {row.shown()}" for row in rows if row.shown() not in plans]
        lines = table(found)
        lines += ["", "Commands, in the order of the rows:", ""]
        lines += [f"    {row.shown()}" for row, _ in found]
        if missing:
            lines += ["", "Not compiled yet:", "", *missing]
        text = replace_between(text, name, "\n".join(lines))
    flags.out.write_text(text)
    return 0


def plan(row: Row, timeout: float) -> dict[str, Any] | None:
    """What the planner prints for a row; None if it did not finish."""
    command = [sys.executable, "-m", "imagen_jax.cli.plan", *row.arguments(), "--json"]
    try:
        done = subprocess.run(command, timeout=timeout, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    return json.loads(done.stdout)


def plans_table(found: list[tuple[Row, dict[str, Any]]]) -> list[str]:
    """Markdown: one line a plan."""
    columns = (
        "stage", "slice", "chips", "GiB a chip, of", "fits", "data x fsdp", "state, GiB a chip",
        "batch (a chip at once)", "computed again", "sent, GiB a chip and step", "s a step",
        "bound", "images/s", "days to 2.5 M",
    )  # fmt: skip
    lines = [markdown(columns), markdown(["---"] * len(columns))]
    for row, have in found:
        memory, mesh, expected = have["memory"], have["mesh"], have["estimate"]
        needed = memory["needed_bytes"]
        cells = [
            row.stage,
            row.topology,
            have["chips"],
            f"{needed / GIB:.1f}, {memory['available_bytes'] / GIB:.2f}" if needed else "?",
            "yes" if have["fits"] else "**no**",
            f"{mesh['data']} x {mesh['fsdp']}",
            f"{memory['state_bytes'] / GIB:.2f}",
            f"{have['batch_size']} ({have['batch_size'] // have['chips'] // row.accumulate})",
            f"{have['executed_flops'] / have['model_flops'] - 1:.0%}",
        ]
        if expected:
            cells += [
                f"{sent(have) / GIB:.2f}",
                f"{expected['seconds']:.3f}",
                expected["bound"],
                f"{have['images_per_second']:,.0f}",
                f"{have['days']:.1f}",
            ]
        else:
            cells += [""] * 5
        lines.append(markdown(cells))
    return lines


def cuts_table(found: list[tuple[Row, dict[str, Any]]]) -> list[str]:
    """Markdown: what a finer cut of the state saves in memory and costs in traffic."""
    columns = (
        "stage",
        "slice",
        "data x fsdp",
        "GiB a chip",
        "of it state",
        "sent, GiB a chip and step",
    )
    lines = [markdown(columns), markdown(["---"] * len(columns))]
    for row, have in found:
        memory, mesh = have["memory"], have["mesh"]
        cells = [
            row.stage,
            row.topology,
            f"{mesh['data']} x {mesh['fsdp']}",
            f"{memory['needed_bytes'] / GIB:.1f}",
            f"{memory['state_bytes'] / GIB:.2f}",
            f"{sent(have) / GIB:.2f}",
        ]
        lines.append(markdown(cells))
    return lines


def scaling_table(found: list[tuple[Row, dict[str, Any]]]) -> list[str]:
    """Markdown: bytes that a chip sends in a step, by kind, for slices of growing size."""
    plans = [have for _, have in found if have["collectives"] is not None]
    kinds = sorted({c["kind"] for have in plans for c in have["collectives"]})
    columns = ("chips", "slice", "data x fsdp", "batch", *kinds, "MiB a chip and step")
    lines = [markdown(columns), markdown(["---"] * len(columns))]
    for have in plans:
        sent = {c["kind"]: c["bytes"] / 2**20 for c in have["collectives"]}
        cells = [
            have["chips"],
            have["topology"],
            f"{have['mesh']['data']} x {have['mesh']['fsdp']}",
            have["batch_size"],
            *(f"{sent.get(kind, 0):,.1f}" for kind in kinds),
            f"{sum(sent.values()):,.1f}",
        ]
        lines.append(markdown(cells))
    return lines


def remat_table(found: list[tuple[Row, dict[str, Any]]]) -> list[str]:
    """Markdown: memory and time of what the backward pass repeats."""
    columns = (
        "model.remat, each level", "train.accumulate", "GiB a chip", "temporaries, GiB", "fits",
        "computed again", "ms of matrix products", "ms of memory", "ms a step", "bound",
    )  # fmt: skip
    lines = [markdown(columns), markdown(["---"] * len(columns))]
    for row, have in found:
        memory, expected = have["memory"], have["estimate"]
        cells: list[Any] = [row.flags[-1].split("'")[1], row.accumulate]
        needed, temporary = memory["needed_bytes"], memory["temporary_bytes"]
        cells.append(f"{needed / GIB:.2f}" if needed else "?")
        cells.append("?" if temporary is None else f"{temporary / GIB:.2f}")
        cells.append("yes" if have["fits"] else "**no**")
        cells.append(f"{have['executed_flops'] / have['model_flops'] - 1:.0%}")
        if expected:
            times = (expected[key] * 1e3 for key in ("compute", "memory", "seconds"))
            cells += [*(f"{time:.1f}" for time in times), expected["bound"]]
        else:
            cells += [""] * 4
        lines.append(markdown(cells))
    return lines


def sent(have: dict[str, Any]) -> int:
    """Bytes that a chip sends in a run of the program."""
    return sum(collective["bytes"] for collective in have["collectives"])


def markdown(cells: Iterable[Any]) -> str:
    """One line of a table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


TABLES = {
    "plans": plans_table,
    "cuts": cuts_table,
    "scaling": scaling_table,
    "remat": remat_table,
}


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
