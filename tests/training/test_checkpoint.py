"""Checkpoints: other meshes, retention, and which changes of config a run accepts."""

import dataclasses

import jax
import numpy as np
import pytest

from imagen_jax.config import (
    CascadeConfig,
    MeshConfig,
    ModelConfig,
    SampleConfig,
    StageConfig,
    TrainConfig,
    to_json_dict,
)
from imagen_jax.errors import UserError
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import tree_shardings
from imagen_jax.training.checkpoint import Checkpoints, RunInfo, check_same_run
from imagen_jax.training.state import TrainState

INFO = RunInfo(config={"a": {"b": [1]}}, examples_seen=2**40, images_before=3, encoder="e")


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


def test_a_checkpoint_of_one_mesh_restores_on_another_bit_for_bit(tmp_path):
    fsdp = make_mesh(MeshConfig(data=1, fsdp=8))
    mixed = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state = state_on(fsdp, 3)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(3, state, INFO)
    checkpoints.wait()
    restored = checkpoints.restore(3, abstract(state, mixed))
    assert restored.params["dense"].sharding.mesh.shape == mixed.shape
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
    assert checkpoints.info(3) == INFO
    checkpoints.close()


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
    assert checkpoints.latest_step is None
    for step in (3, 5, 8):
        checkpoints.save(step, state_on(mesh, step), INFO)
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "8"]
    again = Checkpoints(tmp_path, 2)
    assert again.latest_step == 8
    assert int(again.restore(8, abstract(state_on(mesh, 0), mesh)).step) == 8
    again.close()


def test_a_save_that_was_cut_short_is_not_a_checkpoint(tmp_path):
    mesh = make_mesh(MeshConfig())
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(3, state_on(mesh, 3), INFO)
    checkpoints.close()
    # What Orbax leaves behind when it is killed half-way.
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    again = Checkpoints(tmp_path, 2)
    assert again.latest_step == 3
    again.close()


def cascade(**stage) -> CascadeConfig:
    base = StageConfig(resolution=32, **stage)
    other = StageConfig(resolution=64, low_resolution=32)
    return CascadeConfig(name="x", stages={"base": base, "sr": other})


@pytest.mark.parametrize(
    "config",
    [
        cascade(train=TrainConfig(num_steps=5, batch_size=7, save_every=2)),
        cascade(sample=SampleConfig(guidance_weight=9.0)),
        dataclasses.replace(cascade(), mesh=MeshConfig(fsdp=4)),
        dataclasses.replace(
            cascade(), stages=cascade().stages | {"sr": StageConfig(resolution=128)}
        ),
    ],
)
def test_harmless_changes_are_accepted(config):
    check_same_run(to_json_dict(cascade()), config, "base")


@pytest.mark.parametrize(
    "config, difference",
    [
        (cascade(train=TrainConfig(learning_rate=0.5)), "train.learning_rate: 0.0001 in the"),
        (cascade(model=ModelConfig(head_dim=32)), "model.head_dim: 64 in the checkpoint, 32 now"),
        (dataclasses.replace(cascade(), seed=3), "seed: 0 in the checkpoint, 3 now"),
    ],
)
def test_changes_that_make_another_run_are_refused(config, difference):
    with pytest.raises(UserError, match=difference):
        check_same_run(to_json_dict(cascade()), config, "base")


def test_arrays_are_compared_by_value_not_by_python_type():
    saved = to_json_dict(cascade())
    assert isinstance(saved["stages"]["base"]["model"]["channels"], list)
    check_same_run(saved, cascade(), "base")
