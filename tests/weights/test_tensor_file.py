"""The file is that of the library bit for bit, and is written one array at a time."""

import hashlib
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load, save

from imagen_jax.errors import UserError
from imagen_jax.weights.tensor_file import file_order, write_tensors

METADATA = {"format": "imagen_jax 1"}
ARRAYS = {
    "b/kernel": np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4),
    "a/kernel": np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6).T,  # not contiguous
    "a/bias": np.array([1e-3], np.float32),
    "step": np.float32(3.0),
    "none": np.zeros((0, 3), np.float32),
    '\u00e4 "quoted"': np.array([-0.0, np.nan, np.inf], np.float32),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_the_file_is_that_of_the_library(tmp_path, dtype, kind):
    path = epath.Path(tmp_path / "file")
    arrays = {name: kind(value) for name, value in ARRAYS.items()}
    digest = write_tensors(path, arrays, dtype, METADATA)
    data = path.read_bytes()
    want = {name: np.array(value, dtype, order="C") for name, value in ARRAYS.items()}
    assert data == save(want, metadata=METADATA)
    assert digest == hashlib.sha256(data).hexdigest()
    for name, value in load(data).items():
        np.testing.assert_array_equal(value, want[name])


def test_one_array_at_a_time_is_in_memory(tmp_path):
    size = 4 << 20
    arrays = {f"{i:02}": np.broadcast_to(np.float32(i), (size // 4,)) for i in range(16)}
    read = []

    def copy(value):
        read.append(int(value[0]))
        return np.array(value)

    tracemalloc.start()
    write_tensors(epath.Path(tmp_path / "file"), arrays, "float32", METADATA, copy)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read == sorted(read) == [int(name) for name in file_order(arrays)]
    assert peak < 2.5 * size
    assert (tmp_path / "file").stat().st_size > 16 * size


def test_values_beyond_float16_are_refused_with_their_name(tmp_path):
    with pytest.raises(UserError, match="head has values beyond float16"):
        write_tensors(
            epath.Path(tmp_path / "file"), {"head": np.float32([1e6])}, "float16", METADATA
        )
