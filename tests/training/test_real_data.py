"""train.py on a data set with faults, in the layout of img2dataset."""

import json

import layouts
import pytest
from processes import TIMEOUT, start


def write(folder, bad) -> None:
    files = []
    for i in range(60):
        entry = dict(layouts.img2dataset_files(i))
        if i in bad:
            entry[f"{i:09d}.png"] = b"" if i % 2 else entry[f"{i:09d}.png"][:60]
        if i == 33:
            entry[f"{i:09d}.png"] = layouts.png(i, width=6, height=60)
        files += entry.items()
    layouts.write_tar(folder / "00000.tar", files)


def train(folder, workdir, num_steps) -> tuple[int, str]:
    data = {"source": "webdataset", "path": folder, "min_side": 1.0, "max_bad_share": 0.2}
    flags = [f"--config.data.{name}={value}" for name, value in data.items()]
    process = start(workdir, flags=flags, num_steps=num_steps)
    output, _ = process.communicate(timeout=TIMEOUT)
    return process.returncode, output


def log(workdir) -> list[dict]:
    lines = (workdir / "base" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_faults_are_counted_by_kind_and_too_many_stop_the_run(tmp_path):
    write(tmp_path / "some", bad={10, 21, 32, 43, 54, 55})
    # Thirty-two steps of four pictures: two epochs and a little.
    status, output = train(tmp_path / "some", tmp_path / "whole", 32)
    assert status == 0, output
    assert "left out (truncated picture): 00000.tar[" in output
    last = log(tmp_path / "whole")[-1]
    kinds = last["bad_items_by_kind"]
    assert kinds.keys() == {"truncated picture", "empty file"}
    assert last["bad_items"] == sum(kinds.values()) >= 12
    assert last["filtered_items_by_kind"]["picture too small"] >= 2
    # A continued run continues the counts.
    for number in (18, 32):
        status, output = train(tmp_path / "some", tmp_path / "parts", number)
        assert status == 0, output
    again = log(tmp_path / "parts")[-1]
    for name in ("loss", "bad_items", "bad_items_by_kind", "filtered_items_by_kind"):
        assert again[name] == last[name]

    write(tmp_path / "many", bad=range(0, 60, 3))
    status, output = train(tmp_path / "many", tmp_path / "stopped", 60)
    assert status == 2
    assert "pictures cannot be used, more than data.max_bad_share=0.2" in output
    assert "empty file" in output and "Traceback" not in output
