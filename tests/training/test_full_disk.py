"""A disk that fills up: what was saved stays whole, one message, and the run goes on later.

A limit on the size of files stands in for the disk: it needs no privileges, and is real.
"""

import resource

import pytest
from processes import assert_same_end, finish, start, state_of

from imagen_jax.sampling import artefact

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def limit(size: int):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# Bytes of this config: the arrays of a checkpoint are one file of 350,000, the exported weights
# one of 100,000, and log lines come to 6,000 in the end.
@pytest.mark.parametrize("size", [200_000, 50_000, 2_000])
def test_a_full_disk_is_one_message_and_the_run_goes_on_later(tmp_path, size):
    whole, short = tmp_path / "whole", tmp_path / "short"
    finish(start(whole, num_steps=30))
    finish(start(short, num_steps=12))
    _, before = state_of(short, 12)

    output = finish(start(short, limit(size), num_steps=30), status=2)
    assert output.count("error:") == 1 and "make space" in output
    _, after = state_of(short, 12)
    assert after == before
    weights = artefact.load(short)
    assert weights.stages["base"].steps in (12, 18)
    assert not list(short.rglob(".*.tmp"))

    assert "continuing from the checkpoint of step 12" in finish(start(short, num_steps=30))
    assert_same_end(whole, short, 30)
