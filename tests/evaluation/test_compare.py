"""Two reports, prompt by prompt."""

import json

import pytest

from imagen_jax.errors import UserError
from imagen_jax.evaluation.compare import compare, read_report, text_comparison


def report(accepted, stage="base", group="count"):
    rows = [
        {
            "group": group,
            "number": number,
            "text": f"{number}",
            "seed": number,
            "scores": {stage: {"accepted": value}},
        }
        for number, value in enumerate(accepted)
    ]
    return {"stages": {stage: {"accuracy": {}}}, "prompts": rows}


def test_only_common_prompts_are_compared():
    found = compare(report([True, False, False]), report([False, True]))
    assert found["base"]["count"].total == found["base"]["all"].total == 2
    assert (found["base"]["count"].gained, found["base"]["count"].lost) == (1, 1)
    better = compare(report([False] * 6), report([True] * 6))
    text = text_comparison(better)
    assert "base, count: +100.0 points over 6 prompts (6 gained, 0 lost, p = 0.031)" in text


def test_reports_that_cannot_be_compared(tmp_path):
    with pytest.raises(UserError, match="no scored stage in common"):
        compare(report([True]), report([True], stage="other"))
    with pytest.raises(UserError, match="no prompt"):
        compare(report([True]), report([True], group="one object"))
    with pytest.raises(UserError, match="cannot be read"):
        read_report(str(tmp_path / "missing.json"))
    path = tmp_path / "report.json"
    for content in ("{", "[]", "{}"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"is not a report\.json"):
            read_report(str(path))
    path.write_text(json.dumps(report([True])))
    assert read_report(str(path)) == report([True])
