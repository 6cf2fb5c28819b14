"""A run that saves hundreds of times needs no more files and threads than one that saves twice.

SAVES=300 pytest -m slow tests/training/test_many_saves.py -s
"""

import os

import pytest
from processes import finish, records, start, wait_until

SAVES = int(os.environ.get("SAVES", "60"))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_open_files_and_threads_stay_the_same_over_many_saves(tmp_path):
    process = start(tmp_path, open_files=256, num_steps=SAVES, save_every=1, log_every=5)

    def counts() -> tuple[int, int]:
        proc = f"/proc/{process.pid}"
        return len(os.listdir(f"{proc}/fd")), len(os.listdir(f"{proc}/task"))

    samples = []
    for step in range(20, SAVES - 5, 20):
        wait_until(lambda step=step: any(r["step"] >= step for r in records(tmp_path)), process)
        samples.append(counts())
    finish(process)
    print("open files and threads:", samples)
    for first, last in zip(samples[0], samples[-1], strict=True):
        assert last < first + 15
