"""Profiler traces: which steps, where, and also when a run ends before them."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from imagen_jax.errors import UserError
from imagen_jax.training.profile import Profile, parse_steps


def test_steps_of_the_flag():
    assert parse_steps(None) is None
    assert parse_steps("10:15") == (10, 15)
    assert parse_steps("1:1") == (1, 1)
    for wrong in ("10", "0:5", "6:5", "a:b", "1:2:3", "-1:4"):
        with pytest.raises(UserError, match="FIRST:LAST"):
            parse_steps(wrong)


def annotations(directory) -> list[int]:
    """The numbers of the steps that the trace below `directory` has."""
    [path] = directory.glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted({int(e["args"]["step_num"]) for e in events if "step_num" in e.get("args", {})})


@pytest.mark.parametrize("steps, until, traced", [((2, 3), 5, [102, 103]), ((2, 9), 3, [102, 103])])
def test_a_trace_has_the_steps_asked_for(tmp_path, steps, until, traced):
    lines = []
    profile = Profile(steps, epath.Path(tmp_path), lines.append)
    double = jax.jit(lambda x: x * 2)
    for number in range(101, 101 + until):
        with profile.step(number):
            result = double(jnp.ones(3))
        profile.dispatched(result)
    # A run that ends before the last of them keeps what it has.
    profile.close()
    assert len(lines) == 1 and str(tmp_path) in lines[0]
    assert annotations(tmp_path) == traced


def test_no_trace_unless_asked_for(tmp_path):
    profile = Profile(None, epath.Path(tmp_path), print)
    with profile.step(1):
        pass
    profile.dispatched(None)
    profile.close()
    assert not list(tmp_path.iterdir())
