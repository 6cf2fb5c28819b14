import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_both_readers_are_compared():
    command = [sys.executable, "-m", "benchmarks.parquet_pages", "--count=100", "--files=2"]
    command += ["--rows=10,20", "--size=32", "--rounds=2", "--seconds=0.1"]
    result = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    for rows in (10, 20):
        assert f"| row groups of {rows}, 2 rounds |" in result.stdout
    rows = [line for line in result.stdout.splitlines() if line.startswith("| single pictures")]
    assert len(rows) == 2
    assert all(float(row.split("|")[3]) > 0 for row in rows)
