import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest

QUICK = 300
NUMBER = int(os.environ.get("FUZZ_CASES", "10000"))


def test_some_mutated_files_are_read_or_refused(monkeypatch):
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    outcomes = fuzz.run(QUICK)["outcomes"]
    for group in outcomes.values():
        assert group["read"] > 0 and sum(group.values()) > group["read"]
    assert sum(outcomes["pictures"].values()) == QUICK * (100 - fuzz.TARS - fuzz.FOLDERS) // 100


@pytest.mark.slow
@pytest.mark.multiprocess
def test_mutated_files_are_read_or_refused():
    """In a process of its own: a crash inside a decoder is not an exception."""
    result = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "fuzz.py", str(NUMBER)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout)
    outcomes = report["outcomes"]
    assert sum(outcomes["pictures"].values()) == NUMBER * (100 - fuzz.TARS - fuzz.FOLDERS) // 100
    for group in outcomes.values():
        assert group["read"] > 0 and sum(group.values()) > group["read"]
    # The allocator may keep up to 64 MB after a large picture. A leak of 10 kB a case would
    # exceed that in half the run.
    half = len(report["memory"]) // 2
    assert max(report["memory"][half:]) - report["memory"][half - 1] < 64e6
