"""The tables of docs/scale.md."""

import json
import shlex

import pytest

from benchmarks import plans
from imagen_jax.planning.topology import parse_topology

GIB = 2**30


def printed(row: plans.Row, **changes) -> dict:
    """What the planner prints, of a made-up program."""
    chips = parse_topology(row.topology).num_chips
    return {
        "stage": row.stage,
        "topology": row.topology,
        "chips": chips,
        "mesh": {"data": chips // 4, "fsdp": 4, "tensor": 1},
        "batch_size": 2048,
        "effort": "low",
        "fits": True,
        "memory": {
            "available_bytes": 30.75 * GIB,
            "needed_bytes": 12.25 * GIB,
            "temporary_bytes": 9.5 * GIB,
            "state_bytes": 2.5 * GIB,
        },
        "collectives": [
            {"kind": "all-gather", "count": 2, "bytes": 2 * GIB},
            {"kind": "all-reduce", "count": 1, "bytes": GIB // 2},
        ],
        "model_flops": 4e15,
        "executed_flops": 5e15,
        "estimate": {"compute": 0.25, "memory": 0.125, "seconds": 0.25, "bound": "compute"},
        "images_per_second": 8192.0,
        "days": 7.25,
    } | changes


def test_every_stage_has_the_papers_slice_and_three_others():
    rows = [(row.stage, parse_topology(row.topology)) for row in plans.PLANS]
    assert len(rows) == 12
    assert [t.num_chips for stage, t in rows if stage == "base"] == [256, 256, 64, 64]
    assert [t.num_chips for stage, t in rows if stage == "sr1024"] == [128, 256, 64, 64]
    assert [parse_topology(row.topology).num_chips for row in plans.SCALING] == [8, 64, 256]
    for table in plans.TABLES:
        commands = [row.shown() for row in plans.ROWS if row.table == table]
        assert len(set(commands)) == len(commands) > 0
    for row in plans.ROWS:
        assert shlex.split(row.shown())[3:] == row.arguments()


def test_tables_hold_what_was_planned_and_name_what_was_not(tmp_path):
    base, other = plans.PLANS[0], plans.PLANS[1]
    refused = printed(other, fits=False, collectives=None, estimate=None)
    small, parts = plans.SCALING[1], plans.REMAT[3]
    cut = plans.CUTS[0]
    have = {
        cut.shown(): printed(cut),
        base.shown(): printed(base),
        other.shown(): refused,
        small.shown(): printed(small, batch_size=512),
        parts.shown(): printed(parts),
    }
    (tmp_path / "plans.json").write_text(json.dumps(have))
    marks = "".join(f"<!-- {n} -->\nold\n<!-- end of {n} -->\n" for n in plans.TABLES)
    (tmp_path / "scale.md").write_text(f"before\n{marks}after\n")
    files = (f"--plans={tmp_path / 'plans.json'}", f"--out={tmp_path / 'scale.md'}")
    assert plans.main([*files, "--only=none"]) == 0
    text = (tmp_path / "scale.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    cells = (
        "base", "v4:8x8x4", "256", "12.2, 30.75", "yes", "64 x 4", "2.50", "2048 (8)", "25%",
        "2.50", "0.250", "compute", "8,192", "7.2",
    )  # fmt: skip
    assert f"| {' | '.join(cells)} |" in text
    assert "| base | v5e:16x16 |" in text and "**no**" in text
    assert "| 64 | v4:4x4x4 | 16 x 4 | 512 | 2,048.0 | 512.0 | 2,560.0 |" in text
    assert "| base | v5e:16x16 | 64 x 4 | 12.2 | 2.50 | 2.50 |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| full |")]
    assert line == "| full | 4 | 12.25 | 9.50 | yes | 25% | 250.0 | 125.0 | 250.0 | compute |"
    for table, section in zip(plans.TABLES, text.split("<!-- end of")[:4], strict=True):
        made, _, missing = section.partition("Not compiled yet")
        own = {row.shown() for row in plans.ROWS if row.table == table}
        for command in {row.shown() for row in plans.ROWS}:
            assert (f"    {command}\n" in made) == (command in own and command in have)
            assert (f"    {command}\n" in missing) == (command in own and command not in have)
    # Written again from the same plans it stays as it is.
    assert plans.main([*files, "--only=none"]) == 0
    assert (tmp_path / "scale.md").read_text() == text


def test_a_file_without_marks_is_refused():
    with pytest.raises(ValueError):
        plans.replace_between("no marks", "plans", "table")
