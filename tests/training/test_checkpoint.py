"""Checkpoints: other meshes, retention, unfinished saves, digests."""

import json
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config import MeshConfig
from imagen_jax.errors import UserError
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import tree_shardings
from imagen_jax.training.checkpoint import Checkpoints, DamagedCheckpoint, RunInfo
from imagen_jax.training.counters import Progress
from imagen_jax.training.state import TrainState, state_digest

PROGRESS = Progress(
    examples_seen=2**40, images_before=3, last_loss=0.1, open_window=[{"loss": 0.25, "b": [1.0]}]
)
INFO = RunInfo(config={"a": {"b": [1]}}, encoder="e", progress=PROGRESS)


def state_on(mesh, seed: int) -> TrainState:
    rng = np.random.default_rng(seed)
    params = {
        "dense": rng.normal(size=(64, 128)).astype(np.float32),
        "blocks": {"kernel": rng.normal(size=(2, 3, 3, 16, 32)).astype(np.float32)},
    }
    state = TrainState(
        step=np.int32(seed),
        params=params,
        ema_params=jax.tree.map(np.negative, params),
        opt_state=(jax.tree.map(np.square, params), np.int32(5)),
    )
    return jax.device_put(state, tree_shardings(state, mesh))


def abstract(state: TrainState, mesh) -> TrainState:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        tree_shardings(state, mesh),
    )


MESHES = {
    "1": MeshConfig(data=1, fsdp=1),
    "8 data": MeshConfig(data=8, fsdp=1),
    "8 fsdp": MeshConfig(data=1, fsdp=8),
    "2 x 2 x 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "4 of 8": MeshConfig(data=2, fsdp=2),
}


def mesh_of(name: str):
    config = MESHES[name]
    count = max(config.data, 1) * config.fsdp * config.tensor
    return make_mesh(config, jax.devices()[-count:])


@pytest.mark.parametrize("saved_on", MESHES)
def test_a_checkpoint_of_any_mesh_restores_on_any_other_bit_for_bit(tmp_path, saved_on):
    state = state_on(mesh_of(saved_on), 3)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(3, state, INFO)
    checkpoints.close()
    for name in MESHES:
        mesh = mesh_of(name)
        restored = checkpoints.restore(3, abstract(state, mesh))
        for leaf in jax.tree.leaves(restored):
            assert leaf.sharding.device_set == set(mesh.devices.flat)
        assert (
            restored.params["dense"].sharding.spec
            == abstract(state, mesh).params["dense"].sharding.spec
        )
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
    assert checkpoints.info(3) == INFO


def test_a_relative_directory_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mesh = make_mesh(MeshConfig())
    checkpoints = Checkpoints("run/checkpoints", 2)
    checkpoints.save(3, state_on(mesh, 3), INFO)
    checkpoints.close()
    assert (tmp_path / "run/checkpoints/3").is_dir()


def test_the_newest_are_kept_and_found_again(tmp_path):
    mesh = make_mesh(MeshConfig())
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.steps == []
    for step in (3, 5, 8):
        checkpoints.save(step, state_on(mesh, step), INFO)
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "8"]
    again = Checkpoints(tmp_path, 2)
    assert again.steps == [8, 5]
    assert int(again.restore(8, abstract(state_on(mesh, 0), mesh)).step) == 8
    again.close()


def test_saves_leave_no_open_files_and_threads_behind(tmp_path):
    state = state_on(make_mesh(MeshConfig()), 3)
    checkpoints = Checkpoints(tmp_path, 2)

    def count() -> int:
        checkpoints.wait()
        return len(os.listdir("/proc/self/fd")) + threading.active_count()

    def save(steps: range) -> None:
        for step in steps:
            checkpoints.save(step, state, INFO)

    save(range(5))
    before = count()
    save(range(5, 25))
    # Each save would leave three files and a thread; a pool's threads come and go.
    assert count() < before + 10
    checkpoints.close()


def test_a_save_that_was_cut_short_is_not_a_checkpoint(tmp_path):
    mesh = make_mesh(MeshConfig())
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(3, state_on(mesh, 3), INFO)
    checkpoints.close()
    # What Orbax leaves behind when it is killed half-way.
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    again = Checkpoints(tmp_path, 2)
    assert again.steps == [3]
    again.close()


@pytest.mark.parametrize("name", ["7", "007", "\u0663", "99999999999999999999"])
@pytest.mark.parametrize("kind", ["files of another script", "file", "dangling link"])
def test_a_number_that_is_no_checkpoint_is_refused_and_kept(tmp_path, name, kind):
    stranger = tmp_path / name
    if kind == "file":
        stranger.write_text("x")
    elif kind == "dangling link":
        stranger.symlink_to("/nowhere")
    else:
        stranger.mkdir()
        (stranger / "model.pt").write_text("x")
    with pytest.raises(UserError, match=f"{stranger} is not a checkpoint of this program"):
        Checkpoints(tmp_path, 2).check_names()
    assert os.path.lexists(stranger)


def test_other_names_and_what_is_left_of_checkpoints_are_accepted(tmp_path):
    for name in ("step_5", "1e3", "-1", "latest", "5.orbax-checkpoint-tmp", "4"):
        (tmp_path / name).mkdir()
    for name in ("5/state", "6/_CHECKPOINT_METADATA"):
        (tmp_path / name).mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.check_names()
    assert checkpoints.steps == [6, 5, 4]


def test_the_first_save_removes_what_a_cut_one_left(tmp_path):
    mesh = make_mesh(MeshConfig())
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(5, state_on(mesh, 5), INFO)
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


def test_checkpoints_from_before_there_were_digests_and_counters_are_read(tmp_path):
    mesh = make_mesh(MeshConfig())
    state = state_on(mesh, 3)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(3, state, INFO)
    checkpoints.close()
    path = tmp_path / "3" / "_CHECKPOINT_METADATA"
    content = json.loads(path.read_text())
    content["custom_metadata"] = {
        "config": {},
        "examples_seen": 12,
        "images_before": 1,
        "encoder": "e",
    }
    path.write_text(json.dumps(content))
    again = Checkpoints(tmp_path, 2)
    assert again.info(3).progress == Progress(examples_seen=12, images_before=1)
    assert int(again.restore(3, abstract(state, mesh)).step) == 3


def test_a_flipped_bit_of_an_array_is_noticed(tmp_path):
    mesh = make_mesh(MeshConfig())
    state = state_on(mesh, 3)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(3, state, INFO)
    checkpoints.close()
    largest = max((tmp_path / "3").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match="step 3 is damaged"):
        checkpoints.restore(3, abstract(state, mesh))


def test_the_digest_is_the_same_on_every_mesh_and_sees_every_single_bit():
    state = state_on(make_mesh(MeshConfig()), 3)
    digest = int(state_digest(state))
    for mesh in (MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)):
        assert int(state_digest(state_on(make_mesh(mesh), 3))) == digest
    dense = np.asarray(state.params["dense"])
    rng = np.random.default_rng(0)
    for _ in range(20):
        changed = dense.copy()
        row, column, bit = (rng.integers(n) for n in (*dense.shape, 32))
        changed.view(np.uint32)[row, column] ^= np.uint32(1) << np.uint32(bit)
        params = state.params | {"dense": jnp.asarray(changed)}
        assert int(state_digest(state.replace(params=params))) != digest
    # The same numbers in other places: two rows swapped, two signs flipped.
    swapped = dense.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    negated = dense.copy()
    negated[0, :2] *= -1
    for changed in (swapped, negated):
        params = state.params | {"dense": jnp.asarray(changed)}
        assert int(state_digest(state.replace(params=params))) != digest
