"""Finding model directories, and streaming tensors to the shards of a mesh."""

import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from test_t5 import random_batch, random_params

from imagen_jax.config import MeshConfig
from imagen_jax.errors import UserError
from imagen_jax.parallel import sharding as sharding_lib
from imagen_jax.parallel.mesh import batch_sharding, make_mesh
from imagen_jax.parallel.sharding import frozen_shardings
from imagen_jax.text import hf_files, t5_load
from imagen_jax.text.encoder import encode
from imagen_jax.text.t5 import T5Config

ROOT = Path(__file__).parent.parent.parent
SMALL = T5Config(
    vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=8, feed_forward="gated-gelu"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5")
    t5_load.save_params(path, SMALL, random_params(SMALL))
    return path


def all_on(mesh, spec_of):
    abstract = t5_load.abstract_params(SMALL, "float32")
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec_of(leaf)), abstract)


@pytest.mark.parametrize("axis", range(4))
def test_any_axis_can_be_sharded(directory, axis):
    """Also the width of the heads, which the files do not have as an axis, and the layers."""
    mesh = make_mesh(MeshConfig(fsdp=4))

    def spec(leaf):
        cut = len(leaf.shape) > axis and leaf.shape[axis] % 4 == 0
        return PartitionSpec(*[None] * axis, "fsdp") if cut else PartitionSpec()

    shardings = all_on(mesh, spec)
    assert any(not s.is_fully_replicated for s in jax.tree.leaves(shardings))
    loaded = t5_load.load_params(directory, SMALL, shardings=shardings)
    jax.tree.map(np.testing.assert_array_equal, loaded, t5_load.load_params(directory, SMALL))
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == shardings


class Counting:
    """A safetensors file that counts the elements that are read from it."""

    def __init__(self, file):
        self.file, self.read = file, 0

    def get_slice(self, key):
        counting, tensor = self, self.file.get_slice(key)

        class Slice:
            def get_shape(self):
                return tensor.get_shape()

            def __getitem__(self, index):
                out = tensor[index]
                counting.read += out.size
                return out

        return Slice()


def test_every_element_is_read_once_however_many_devices_hold_it(directory, monkeypatch):
    monkeypatch.setattr(sharding_lib, "MIN_SHARDED_SIZE", 1)
    abstract = t5_load.abstract_params(SMALL, "bfloat16")
    leaves = t5_load._leaves(SMALL, "shared.weight")
    total = sum(math.prod(leaf.full_shape) for leaf in leaves)
    # Over all devices; over four of them, each part on two; whole on each.
    quarter = total * 2 // 4 + 1
    for mesh, limit in ((MeshConfig(), 1), (MeshConfig(fsdp=4), quarter), (MeshConfig(), 2**30)):
        monkeypatch.setattr(sharding_lib, "FROZEN_BYTES_PER_DEVICE", limit)
        shardings = frozen_shardings(abstract, make_mesh(mesh))
        with hf_files.open_tensors(directory) as files:
            counting = Counting(next(iter(files.values())))
            hf_files.load_params(dict.fromkeys(files, counting), leaves, "bfloat16", shardings)
        assert counting.read == total


def test_large_networks_are_spread_over_as_few_axes_as_needed(monkeypatch):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    abstract = t5_load.abstract_params(SMALL, "bfloat16")
    total = sum(leaf.size * 2 for leaf in jax.tree.leaves(abstract))
    monkeypatch.setattr(sharding_lib, "MIN_SHARDED_SIZE", 1024)
    for parts, axes in ((1, None), (2, ("fsdp",)), (4, ("fsdp", "tensor"))):
        monkeypatch.setattr(sharding_lib, "FROZEN_BYTES_PER_DEVICE", total // parts + 1)
        kernel = frozen_shardings(abstract, mesh)["blocks"]["feed_forward"]["up"]["kernel"]
        assert kernel.spec == (PartitionSpec(None, None, axes) if axes else PartitionSpec())
    monkeypatch.setattr(sharding_lib, "FROZEN_BYTES_PER_DEVICE", 1)
    shardings = frozen_shardings(abstract, mesh)
    assert shardings["blocks"]["feed_forward"]["up"]["kernel"].spec == PartitionSpec(
        None, None, ("data", "fsdp", "tensor")
    )
    assert shardings["embedding"].spec == PartitionSpec(("data", "fsdp", "tensor"))
    assert shardings["final_norm"]["scale"].is_fully_replicated
    # An axis of 6 in three ways over 2x2x2: the last axis of the mesh alone divides.
    odd = frozen_shardings({"w": jax.ShapeDtypeStruct((3, 1026), np.float32)}, mesh)
    assert odd["w"].spec == PartitionSpec(None, ("tensor",))
    # A scan reads one layer at a time, so the axis of layers stays whole.
    deep = {"blocks": {"w": jax.ShapeDtypeStruct((64, 16, 32), np.float32)}}
    spec = frozen_shardings(deep, mesh)["blocks"]["w"].spec
    assert spec == PartitionSpec(None, None, ("data", "fsdp", "tensor"))


def test_a_sharded_encoder_gives_the_same_states(directory, monkeypatch):
    monkeypatch.setattr(sharding_lib, "FROZEN_BYTES_PER_DEVICE", 1)
    monkeypatch.setattr(sharding_lib, "MIN_SHARDED_SIZE", 1)
    ids, mask = random_batch(SMALL, [8, 3, 1, 5, 8, 8, 2, 7], 8)
    expected = encode(t5_load.load_params(directory, SMALL), SMALL, ids, mask).tokens
    for config in (MeshConfig(), MeshConfig(fsdp=4), MeshConfig(data=2, fsdp=2, tensor=2)):
        mesh = make_mesh(config)
        shardings = frozen_shardings(t5_load.abstract_params(SMALL, "float32"), mesh)
        params = t5_load.load_params(directory, SMALL, shardings=shardings)
        rows = batch_sharding(mesh)
        tokens = encode(
            params, SMALL, jax.device_put(ids, rows), jax.device_put(mask, rows), rows
        ).tokens
        assert tokens.sharding.is_equivalent_to(rows, 3)
        # 2e-5: sums in another order, values of order 1.
        np.testing.assert_allclose(tokens, expected, atol=2e-5)


def test_hub_ids_need_a_network_and_say_so(tmp_path):
    # tests/conftest.py sets HF_HUB_OFFLINE.
    with pytest.raises(
        UserError, match=r"'google/t5-v1_1-small'.*hf download google/t5-v1_1-small"
    ):
        hf_files.find_directory("google/t5-v1_1-small")
    with pytest.raises(UserError, match="hf download google/t5-v1_1-small "):
        hf_files.find_directory("google/t5-v1_1-small@refs/pr/4")
    for name in ("no_such", "/no/such/place", "a/b/c", "./a/b", ""):
        with pytest.raises(UserError, match="neither 'embedded' nor a directory"):
            hf_files.find_directory(name)
    assert hf_files.find_directory(str(tmp_path)) == tmp_path


def test_hub_ids_are_fetched_without_other_formats(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hf_files.find_directory("google/t5-v1_1-xl@refs/pr/2") == tmp_path
    assert (asked["repository"], asked["revision"]) == ("google/t5-v1_1-xl", "refs/pr/2")
    assert "spiece.model" in asked["patterns"] and "model*.safetensors" in asked["patterns"]
    assert not any(".bin" in pattern or "msgpack" in pattern for pattern in asked["patterns"])
    hf_files.find_directory("google/t5-v1_1-xl", hf_files.TORCH_FILES)
    assert asked["revision"] is None and "pytorch_model*.bin" in asked["patterns"]


LARGE = T5Config(
    vocab_size=32128, d_model=1024, d_ff=2816, num_layers=24, num_heads=16,
    feed_forward="gated-gelu", dtype="bfloat16",
)  # fmt: skip

# Run by two processes, each with one device of the mesh.
LOADING = """
import re, sys
import jax
from jax.experimental import multihost_utils
from imagen_jax.config import MeshConfig, TextConfig
from imagen_jax.parallel import sharding
from imagen_jax.parallel.mesh import batch_sharding, make_mesh
from imagen_jax.text import encoder as encoder_lib

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

def peak_in(function):
    import threading
    peak, done = [anonymous()], threading.Event()
    def watch():
        while not done.wait(0.002):
            peak.append(anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        return function(), max(peak)
    finally:
        done.set()
        thread.join()

address, index, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, 2, index)
mesh = make_mesh(MeshConfig(fsdp=-1, data=1))
assert mesh.size == 2 and jax.local_device_count() == 1
multihost_utils.sync_global_devices("start")
import numpy, safetensors, sentencepiece, ml_dtypes
sharding.FROZEN_BYTES_PER_DEVICE = 2**29
load = lambda: encoder_lib.load_encoder(TextConfig(encoder=directory, max_length=16), mesh=mesh)
before = anonymous()
encoder, peak = peak_in(load)
leaves = jax.tree.leaves(encoder.params)
local = sum(leaf.addressable_data(0).nbytes for leaf in leaves)
total = sum(leaf.nbytes for leaf in leaves)
place = lambda x: jax.make_array_from_process_local_data(batch_sharding(mesh), x)
text = encoder.embed(encoder.prepare(["a red circle"]), place)
sums = float(abs(text.tokens.addressable_data(0)).sum())
print("RESULT", total, local, peak - before, encoder.identity, sums, flush=True)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_each_load_no_more_than_their_half(tmp_path):
    """A checkpoint of T5-large's shape in float32, in two files, streams to bfloat16 shards."""
    import socket

    write_synthetic_checkpoint(tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOADING, address, str(index), str(tmp_path)],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for index in range(2)
    ]  # fmt: skip
    results = []
    for process in processes:
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
        line = next(line for line in output.splitlines() if line.startswith("RESULT"))
        results.append(line.split()[1:])
        total, local, grown = (int(value) for value in results[-1][:3])
        assert total == 2 * 341_231_104  # bfloat16
        assert local < 0.501 * total  # norms and biases are whole on both
        print(f"{grown / 1e6:.0f} MB for {local / 1e6:.0f} MB of shards")
        assert grown < 1.5 * local, f"{grown / local:.2f} of the local shards"
    assert results[0][3:] == results[1][3:] and float(results[0][4]) > 0


def write_synthetic_checkpoint(directory):
    """Random float32 weights of LARGE with T5's names, layer by layer, in two files."""
    import json
    import shutil

    from safetensors.numpy import save_file

    from imagen_jax.text.encoder import EMBEDDED

    shutil.copy(EMBEDDED["embedded"] / "spiece.model", directory)
    t5_load.write_config(directory, LARGE)
    rng = np.random.default_rng(0)
    tensors = {}
    for leaf in t5_load._leaves(LARGE, "shared.weight"):
        for key in leaf.keys:
            noise = rng.standard_normal(leaf.file_shape, np.float32)
            tensors[key] = noise * leaf.file_shape[-1] ** -0.5
    keys = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((keys[::2], keys[1::2]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, directory / name)
        weight_map |= dict.fromkeys(part, name)
    (directory / hf_files.INDEX).write_text(json.dumps({"weight_map": weight_map}))
