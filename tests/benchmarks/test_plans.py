"""The rows of the table in docs/scale.md."""

import json
import subprocess

import pytest

from benchmarks import plans
from imagen_jax.planning.topology import parse_topology

GIB = 2**30


def planned(row: plans.Row, **changes) -> dict:
    """What the planner prints for a made-up program."""
    chips = parse_topology(row.topology).num_chips
    return {
        "stage": row.stage,
        "topology": row.topology,
        "chips": chips,
        "mesh": {"data": chips // 4, "fsdp": 4, "tensor": 1},
        "fits": True,
        "memory": {
            "available_bytes": 30.75 * GIB,
            "needed_bytes": 12.25 * GIB,
        },
        "collectives": [
            {"kind": "all-gather", "count": 2, "bytes": 2 * GIB},
            {"kind": "all-reduce", "count": 1, "bytes": GIB // 2},
        ],
        "estimate": {"seconds": 0.25, "bound": "compute"},
        "images_per_second": 8192.0,
        "days": 7.25,
    } | changes


def test_every_stage_has_the_papers_slice_and_three_others():
    rows = [(row.stage, parse_topology(row.topology)) for row in plans.ROWS]
    assert len(set(plans.ROWS)) == len(rows) == 12
    assert [t.num_chips for stage, t in rows if stage == "base"] == [256, 256, 64, 64]
    assert [t.num_chips for stage, t in rows if stage == "sr256"] == [128, 256, 64, 64]
    assert [t.num_chips for stage, t in rows if stage == "sr1024"] == [128, 256, 64, 64]


def test_the_table_has_what_was_planned_and_leaves_out_what_was_not(monkeypatch, capsys):
    base, other, third, failing = plans.ROWS[:4]
    answers = {
        base.topology: planned(base),
        other.topology: planned(other, fits=False, collectives=None, estimate=None),
        third.topology: planned(third),
    }
    commands = []

    def run(command, **_):
        commands.append(command)
        (topology,) = (part.partition("=")[2] for part in command if "--topology" in part)
        if topology not in answers:
            return subprocess.CompletedProcess(command, 1, "", "the compiler gave up")
        return subprocess.CompletedProcess(command, 0, json.dumps(answers[topology]), "")

    monkeypatch.setattr(subprocess, "run", run)
    assert plans.main(["--only=base"]) == 1  # one row failed
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.count("|") for line in lines] == [len(plans.COLUMNS) + 1] * 5
    assert lines[2] == "| base | v4:8x8x4 | 256 | 12.2 of 30.75 | 64 x 4 | 2.50 | 8,192 | 7.2 |"
    assert "| **does not fit**: 12.2 of 30.75 | 64 x 4 |  |" in lines[3]
    assert "the compiler gave up" in printed.err and failing.topology not in printed.out
    assert [command[3:-1] for command in commands] == [row.arguments() for row in plans.ROWS[:4]]


def test_only_chooses_by_stage_or_slice():
    assert sum(plans.chosen(row, ["base", "v5e"]) for row in plans.ROWS) == 6
    assert all(plans.chosen(row, []) for row in plans.ROWS)
    with pytest.raises(SystemExit):
        plans.main(["--only=v9"])
