"""Learning rates at given steps; clipping; what Adafactor's parameter scale does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.config import TrainConfig
from imagen_jax.errors import UserError
from imagen_jax.optimizers import Adafactor, Muon
from imagen_jax.training.optimizer import learning_rate, make_optimizer


def test_warm_up_then_cosine_to_zero():
    rate = learning_rate(
        TrainConfig(learning_rate=1e-4, warmup_steps=10, num_steps=110, lr_decay="cosine")
    )
    values = [float(rate(step)) for step in (0, 4, 9, 10, 60, 110, 200)]
    # 1e-4 (n + 1) / 10, then 1e-4 (1 + cos(pi (n - 10) / 100)) / 2.
    np.testing.assert_allclose(values, [1e-5, 5e-5, 1e-4, 1e-4, 5e-5, 0, 0], rtol=1e-5, atol=1e-12)


def test_warm_up_then_constant_as_the_papers_text_says():
    rate = learning_rate(TrainConfig(warmup_steps=4, lr_decay="constant"))
    np.testing.assert_allclose([float(rate(n)) for n in (0, 3, 10**6)], [2.5e-5, 1e-4, 1e-4])


def test_no_warm_up_starts_at_the_peak():
    rate = learning_rate(TrainConfig(warmup_steps=0, lr_decay="constant"))
    np.testing.assert_allclose(float(rate(0)), 1e-4)


def first_update(config: TrainConfig, params, grads):
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return updates


def test_gradients_are_clipped_to_the_global_norm():
    # Adam's first update is -rate * g / (|g| + eps): eps shows the size of g after clipping.
    config = TrainConfig(warmup_steps=0, lr_decay="constant", clip_norm=1e-8)
    update = first_update(config, {"a": jnp.zeros(())}, {"a": jnp.float32(100.0)})
    np.testing.assert_allclose(update["a"], -1e-4 * 1e-8 / 2e-8, rtol=1e-4)


@pytest.mark.parametrize("scaled, size", [(False, 1e-4), (True, 1e-7)])
def test_adafactor_moves_a_zero_kernel_by_the_rate_only_without_parameter_scale(scaled, size):
    config = TrainConfig(
        warmup_steps=0,
        lr_decay="constant",
        clip_norm=1e9,
        optimizer=Adafactor(parameter_scale=scaled),
    )
    params, grads = {"a": jnp.zeros((4, 4))}, {"a": jnp.full((4, 4), 0.3)}
    update = first_update(config, params, grads)
    # Its first step has unit RMS; the parameter scale multiplies it by max(RMS(0), 1e-3).
    np.testing.assert_allclose(np.abs(update["a"]), size, rtol=1e-3)


def test_muon_orthogonalises_hidden_kernels_and_leaves_the_rest_to_adam():
    keys = jax.random.split(jax.random.key(0), 4)
    grads = {
        "conv": {"kernel": jax.random.normal(keys[0], (3, 3, 8, 16)), "bias": jnp.ones(16)},
        "down_0": {"blocks": {"conv_1": {"kernel": jax.random.normal(keys[1], (2, 3, 3, 8, 8))}}},
        "text": {"up_0_blocks": {"key": {"kernel": jax.random.normal(keys[2], (2, 32, 8))}}},
        "head": {"kernel": jax.random.normal(keys[3], (3, 3, 8, 12))},
    }
    params = jax.tree.map(jnp.zeros_like, grads)
    config = TrainConfig(
        learning_rate=1e-3, warmup_steps=0, lr_decay="constant", clip_norm=1e9, optimizer=Muon()
    )
    update = first_update(config, params, grads)

    def singular_values(kernel):
        matrix = np.asarray(kernel).reshape(-1, kernel.shape[-1])
        return np.linalg.svd(matrix, compute_uv=False)

    # The first update is the orthogonal factor of the gradient; five Newton-Schulz iterations with
    # the usual coefficients bring its singular values into [0.7, 1.2]. The rate is 0.02, times
    # sqrt(outputs / inputs) where there are more outputs.
    matrices = [update["conv"]["kernel"]]
    matrices += list(update["down_0"]["blocks"]["conv_1"]["kernel"])  # each layer by itself
    matrices += list(update["text"]["up_0_blocks"]["key"]["kernel"])
    for matrix in matrices:
        assert singular_values(matrix).min() > 0.65 * 0.02
        assert singular_values(matrix).max() < 1.25 * 0.02
    u, _, vt = np.linalg.svd(np.asarray(grads["conv"]["kernel"]).reshape(72, 16), False)
    direction = -np.asarray(update["conv"]["kernel"]).reshape(72, 16)
    alignment = np.sum(direction * (u @ vt)) / np.linalg.norm(direction) / np.sqrt(16)
    assert alignment > 0.98
    # Optax gives the rest to Adam with Nesterov's momentum, as Muon's own is.
    nadam = optax.nadam(1e-3, b2=config.optimizer.adam_b2)
    expected, _ = nadam.update(grads, nadam.init(params), params)
    np.testing.assert_allclose(update["conv"]["bias"], expected["conv"]["bias"], rtol=1e-5)
    np.testing.assert_allclose(update["head"]["kernel"], expected["head"]["kernel"], rtol=1e-5)


def test_muons_rate_warms_up_and_decays_with_the_other():
    config = TrainConfig(
        learning_rate=1e-3, warmup_steps=4, num_steps=8, clip_norm=1e9, optimizer=Muon()
    )
    optimizer = make_optimizer(config)
    params = {"a": {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)}}
    grads = {"a": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}}
    state, sizes = optimizer.init(params), []
    for _ in range(9):
        updates, state = optimizer.update(grads, state, params)
        sizes.append([float(jnp.abs(updates["a"][name]).max()) for name in ("kernel", "bias")])
    sizes = np.array(sizes)
    # The same gradient each time: its orthogonal factor stays, only the rate changes.
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0]
    np.testing.assert_allclose(sizes[:, 0] / sizes[3, 0], expected, rtol=1e-3, atol=1e-6)
    # Adam's Nesterov momentum adds its own factor, which does not depend on the rate.
    nadam, nadam_sizes = optax.nadam(1.0, b2=config.optimizer.adam_b2), []
    nadam_state = nadam.init(params)
    for _ in range(9):
        updates, nadam_state = nadam.update(grads, nadam_state, params)
        nadam_sizes.append(float(jnp.abs(updates["a"]["bias"]).max()))
    ratio = sizes[:, 1] / np.array(nadam_sizes)
    np.testing.assert_allclose(ratio / 1e-3, expected, rtol=1e-3, atol=1e-6)


def test_linear_is_constant_and_falls_to_zero_over_the_last_steps():
    settings = {"learning_rate": 1.0, "warmup_steps": 4, "lr_decay": "linear", "decay_steps": 10}
    rate = learning_rate(TrainConfig(num_steps=100, **settings))
    assert [float(rate(n)) for n in (3, 4, 50, 90)] == [1.0, 1.0, 1.0, 1.0]
    np.testing.assert_allclose([rate(95), rate(99), rate(100)], [0.5, 0.1, 0.0], atol=1e-6)  # f32
    # A longer run is the same up to the decay of the shorter one.
    longer = learning_rate(TrainConfig(num_steps=200, **settings))
    assert float(longer(99)) == 1.0


@pytest.mark.parametrize(("decay", "steps"), [("linear", 0), ("cosine", 10)])
def test_only_the_linear_decay_has_a_length(decay, steps):
    with pytest.raises(UserError, match="needs a number of steps"):
        TrainConfig(lr_decay=decay, decay_steps=steps)
