"""A full disk: one message, what was saved stays whole, and the run can be continued.

The tests limit the size of files, which needs no privileges, instead of filling a disk.
"""

import shutil

import numpy as np
import pytest
from processes import assert_same_end, finish, start, state_of

from imagen_jax.weights.reading import load

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of 30 steps, and one of 12 that is to be continued."""
    directory = tmp_path_factory.mktemp("runs")
    for steps in (30, 12):
        finish(start(directory / str(steps), num_steps=steps))
    return directory


# Bytes of this config: the arrays of a checkpoint are one file of 350,000, the exported weights
# one of 100,000, and log lines come to 6,000 in the end.
@pytest.mark.parametrize("size", [200_000, 50_000, 2_000])
def test_a_full_disk_is_one_message_and_the_run_can_be_continued(runs, tmp_path, size):
    run = shutil.copytree(runs / "12", tmp_path / "run")
    leaves, progress = state_of(run, 12)

    output = finish(start(run, file_limit=size, num_steps=30), status=2)
    assert output.count("\nerror:") == 1 and "make space" in output
    leaves_after, progress_after = state_of(run, 12)
    assert progress_after == progress
    for before, after in zip(leaves, leaves_after, strict=True):
        np.testing.assert_array_equal(before, after)
    # Old weights or new ones, but whole.
    assert load(run).stages["base"].steps in (12, 18)
    assert not list(run.rglob(".*.tmp"))

    assert "continuing from the checkpoint of step 12" in finish(start(run, num_steps=30))
    assert_same_end(runs / "30", run, 30)
