"""The train step: the same on every mesh, its metrics, its randomness."""

import dataclasses
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from stages import opened

from imagen_jax.config import DiffusionConfig, MeshConfig, StageConfig, TrainConfig
from imagen_jax.diffusion.schedules import NormalLevels
from imagen_jax.models import EfficientUNetConfig
from imagen_jax.optimizers import Muon
from imagen_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from imagen_jax.parallel.sharding import MIN_SHARDED_SIZE
from imagen_jax.stage import Stage
from imagen_jax.training import step as step_module
from imagen_jax.training.optimizer import make_optimizer
from imagen_jax.training.state import abstract_state, init_state, state_from_params
from imagen_jax.types import Batch, TextCond, normalize_image

TEXT_DIM = 16
BATCH = 8
KEY = jax.random.key(1)


def tiny_config(**train) -> StageConfig:
    return StageConfig(
        resolution=16,
        low_resolution=8,
        model=EfficientUNetConfig(
            channels=(32,),
            num_res_blocks=(2,),
            strides=(2,),
            self_attention=(True,),
            text_attention=("joint",),
            head_dim=16,
        ),
        train=TrainConfig(batch_size=BATCH, learning_rate=1e-3, warmup_steps=0, **train),
    )


def tiny_stage(**train) -> Stage:
    return opened(tiny_config(**train), TEXT_DIM)


def random_batch(seed: int, stage: Stage) -> Batch:
    rng = np.random.default_rng(seed)
    size = stage.config.resolution
    mask = np.arange(5)[None] < rng.integers(1, 6, (BATCH, 1))
    return Batch(
        image=rng.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8),
        text=TextCond(tokens=rng.normal(size=(BATCH, 5, TEXT_DIM)).astype(np.float32), mask=mask),
    )


def run_steps(stage: Stage, mesh_config: MeshConfig, count: int, steps: int = 5):
    mesh = make_mesh(mesh_config, jax.devices()[:count])
    model, optimizer = stage.network, make_optimizer(stage.config.train)
    state = init_state(model, optimizer, mesh, jax.random.key(0))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(
        step_module.make_train_step(stage, optimizer),
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
    )
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    losses = []
    for index in range(steps):
        batch = jax.device_put(random_batch(index, stage), batch_sharding(mesh))
        state, metrics = step(state, batch, key)
        losses.append(float(metrics["loss"]))
    return losses, state, metrics


def assert_close_ema(actual, expected, atol: float) -> None:
    """The EMA parameters of two states differ by at most `atol` and a relative 1e-7."""
    for (path, want), have in zip(
        jax.tree_util.tree_leaves_with_path(expected.ema_params),
        jax.tree.leaves(actual.ema_params),
        strict=True,
    ):
        np.testing.assert_allclose(
            np.asarray(have), np.asarray(want), atol=atol, err_msg=jax.tree_util.keystr(path)
        )


MESHES = {
    "8 data": MeshConfig(data=8),
    "8 fsdp": MeshConfig(data=1, fsdp=8),
    "2x2x2": MeshConfig(data=2, fsdp=2, tensor=2),
}


@pytest.fixture(scope="module")
def on_one_device():
    return run_steps(tiny_stage(), MeshConfig(), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_five_steps_are_the_same_on_every_mesh(name, on_one_device):
    losses, state, _ = run_steps(tiny_stage(), MESHES[name], 8)
    expected_losses, expected, _ = on_one_device
    # f32 sums in another order: 1e-6 relative a step, a few steps of growth.
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    # Five Adam steps move a parameter by at most 5e-3; where the gradient is near zero the
    # direction is rounding amplified by 1/sqrt(nu), hence a twentieth of that.
    assert_close_ema(state, expected, atol=2.5e-4)


@pytest.mark.slow
def test_five_steps_of_muon_are_the_same_on_a_mesh():
    # Muon reads kernels as matrices over axes that are sharded here.
    stage = tiny_stage(optimizer=Muon())
    expected_losses, expected, _ = run_steps(stage, MeshConfig(), 1)
    losses, state, _ = run_steps(stage, MESHES["2x2x2"], 8)
    # Five Newton-Schulz iterations amplify what rounding leaves in flat directions 500 times.
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-3)
    # A twentieth of what five steps of 0.02 can do to one weight.
    assert_close_ema(state, expected, atol=5e-3)


@pytest.mark.slow
def test_a_batch_in_parts_is_the_whole_batch(on_one_device):
    losses, state, metrics = run_steps(tiny_stage(accumulate=4), MeshConfig(), 1)
    expected_losses, expected, expected_metrics = on_one_device
    # As between meshes: f32 sums in another order.
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    np.testing.assert_allclose(
        metrics["bucket_loss"], expected_metrics["bucket_loss"], rtol=1e-3, atol=1e-5
    )
    np.testing.assert_array_equal(metrics["bucket_count"], expected_metrics["bucket_count"])
    assert_close_ema(state, expected, atol=2.5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8 fsdp", "2x2x2"])
def test_parts_are_cut_without_moving_the_batch(name):
    train = TrainConfig(batch_size=16, accumulate=2, warmup_steps=0)
    stage = opened(dataclasses.replace(tiny_config(), train=train), TEXT_DIM)
    mesh = make_mesh(MESHES[name])
    model, optimizer = stage.network, make_optimizer(stage.config.train)
    state = abstract_state(model, optimizer, mesh)
    rows = batch_sharding(mesh)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((16, *leaf.shape[1:]), leaf.dtype, sharding=rows),
        random_batch(0, stage),
    )
    step = jax.jit(
        step_module.make_train_step(stage, optimizer),
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), replicated(mesh)),
    )
    with jax.set_mesh(mesh):
        text = step.lower(state, batch, KEY).compile().as_text()
    assert "all-to-all" not in text
    # On "tensor" the partitioner exchanges parts of kernels.
    assert mesh.shape["tensor"] > 1 or "collective-permute" not in text
    # The sum of the gradients is cut as the parameters are.
    large = max(jax.tree.leaves(state.params), key=lambda leaf: leaf.size)
    whole = "f32[" + ",".join(map(str, large.shape)) + "]"
    loops = [line for line in text.splitlines() if " while(" in line]
    assert loops
    assert not any(whole in line.split(" while(")[0] for line in loops)


def test_fsdp_shards_parameters_ema_and_optimizer_alike():
    stage = tiny_stage()
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    state = abstract_state(stage.network, make_optimizer(stage.config.train), mesh)
    leaves = jax.tree.leaves(state)
    large = [leaf for leaf in leaves if leaf.size >= MIN_SHARDED_SIZE]
    # The rest is small: it would cost more to gather than to hold.
    assert sum(leaf.size for leaf in large) > 0.8 * sum(leaf.size for leaf in leaves)
    for leaf in large:
        assert np.prod(leaf.sharding.shard_shape(leaf.shape)) == leaf.size / 8
    adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(s))
    for tree in (state.ema_params, adam.mu, adam.nu):
        assert jax.tree.map(lambda a: a.sharding, tree) == jax.tree.map(
            lambda a: a.sharding, state.params
        )


def is_adam(node) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


@pytest.fixture(scope="module")
def started():
    """A fresh state on one device and the compiled step of `tiny_stage()`."""
    stage = tiny_stage()
    model, optimizer = stage.network, make_optimizer(stage.config.train)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = init_state(model, optimizer, mesh, jax.random.key(0))
    return state, jax.jit(step_module.make_train_step(stage, optimizer))


def test_every_step_draws_new_times_and_noise(started):
    state, step = started
    batch, key = random_batch(0, tiny_stage()), jax.random.key(1)
    # The same parameters and pictures: only the number of the step differs.
    losses = []
    for n in range(5):
        number = jax.device_put(jnp.int32(n), state.step.sharding)
        losses.append(float(step(state.replace(step=number), batch, key)[1]["loss"]))
    assert len(set(losses)) == len(losses)


def test_times_are_spread_uniformly_and_differ_over_the_batch():
    times = np.concatenate(
        [np.asarray(step_module.draw_times(jax.random.key(seed), 16)) for seed in range(200)]
    )
    assert times.min() >= 0.0 and times.max() < 1.0
    one = np.sort(times[:16])
    np.testing.assert_allclose(np.diff(one), 1 / 16, atol=1e-6)
    # 3,200 draws, 200 independent: the mean's standard deviation is at most 0.289/16/sqrt(200).
    assert abs(times.mean() - 0.5) < 5 * 0.289 / 16 / np.sqrt(200)


def test_ema_follows_its_formula(started):
    decays = [float(step_module.ema_decay(jnp.int32(n), 0.9999)) for n in (0, 8, 10**7)]
    np.testing.assert_allclose(decays, [0.1, 0.5, 0.9999], rtol=1e-6)
    start, step = started
    state, _ = step(start, random_batch(0, tiny_stage()), jax.random.key(1))
    for old, new, ema in zip(
        *map(jax.tree.leaves, (start.params, state.params, state.ema_params)), strict=True
    ):
        np.testing.assert_allclose(ema, 0.1 * old + 0.9 * new, atol=1e-6)


@pytest.mark.parametrize("bias, scale, loss_is_finite", [(1e30, 1.0, False), (1e17, 1e5, True)])
def test_a_step_that_is_not_finite_changes_only_its_number(started, bias, scale, loss_is_finite):
    start, step = started
    # The output layer: the square of its bias is the loss; the gradient of its kernel (zero at
    # first) is the product of bias and scale, whose square is in the norm.
    head, norm = start.params["head"], start.params["head_norm"]
    params = start.params | {
        "head": head | {"bias": jnp.full_like(head["bias"], bias)},
        "head_norm": norm | {"scale": jnp.full_like(norm["scale"], scale)},
    }
    state = start.replace(params=params)
    new, metrics = step(state, random_batch(0, tiny_stage()), jax.random.key(1))
    assert bool(np.isfinite(metrics["loss"])) == loss_is_finite
    assert not np.isfinite(metrics["grad_norm"])
    assert metrics["skipped"]
    assert new.step == state.step + 1
    for tree in ("params", "ema_params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, tree), getattr(state, tree))
    # With finite parameters the next step is not skipped.
    new, metrics = step(new.replace(params=start.params), random_batch(1, tiny_stage()), KEY)
    assert not metrics["skipped"]
    assert int(new.opt_state[1][0].count) == 1


def test_bucket_sums_add_up_to_the_loss(started):
    state, step = started
    _, metrics = step(state, random_batch(0, tiny_stage()), jax.random.key(1))
    assert metrics["bucket_count"].sum() == BATCH
    np.testing.assert_allclose(metrics["bucket_loss"].sum() / BATCH, metrics["loss"], rtol=1e-5)
    means = step_module.bucket_means({k: np.asarray(v) for k, v in metrics.items()})
    assert set(means) <= set(step_module.BUCKETS)


def test_examples_have_the_noise_levels_of_training_not_those_of_sampling():
    diffusion = DiffusionConfig(train_levels=NormalLevels(mean=-2.0, std=0.5))
    stage = opened(dataclasses.replace(tiny_config(), diffusion=diffusion), TEXT_DIM)
    model = stage.network
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = init_state(model, make_optimizer(stage.config.train), mesh, jax.random.key(0)).params
    batch = random_batch(0, stage)
    loss = step_module.make_loss(stage)
    _, logsnr = jax.jit(loss)(params, normalize_image(batch.image), batch.text, KEY)
    # One of eight times lies in each eighth of [0, 1), and so in each eighth of the distribution.
    edges = [-20.0, *(NormalDist(-2.0, 0.5).inv_cdf(i / BATCH) for i in range(1, BATCH)), 20.0]
    np.testing.assert_array_equal(np.histogram(logsnr, edges)[0], 1)


def test_dropping_every_caption_makes_the_text_irrelevant():
    stage = tiny_stage(text_drop_rate=1.0)
    model, optimizer = stage.network, make_optimizer(stage.config.train)
    step = jax.jit(step_module.make_train_step(stage, optimizer))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    batch = random_batch(0, stage)
    other = dataclasses.replace(batch, text=random_batch(1, stage).text)
    state = init_state(model, optimizer, mesh, jax.random.key(0))
    (_, a), (_, b) = (step(state, each, jax.random.key(1)) for each in (batch, other))
    np.testing.assert_array_equal(a["loss"], b["loss"])


def test_an_ignored_text_gives_no_gap_and_a_used_one_does():
    stage = tiny_stage()
    model, optimizer = stage.network, make_optimizer(stage.config.train)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = init_state(model, optimizer, mesh, jax.random.key(0)).params
    gap = jax.jit(step_module.make_condition_gap(stage))
    # The output layer starts at zero, so nothing has an influence yet.
    assert gap(params, random_batch(0, stage), jax.random.key(1)) == 0.0
    noisy = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape), params)
    assert gap(noisy, random_batch(0, stage), jax.random.key(1)) != 0.0


def test_a_state_from_weights_starts_its_ema_there():
    stage = tiny_stage()
    model, optimizer = stage.network, make_optimizer(stage.config.train)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    params = jax.device_get(init_state(model, optimizer, mesh, jax.random.key(3)).params)
    state = state_from_params(params, optimizer, mesh)
    for tree in (state.params, state.ema_params):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(tree), params)
    assert state.step == 0
