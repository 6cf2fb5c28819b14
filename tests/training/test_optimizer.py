"""Learning rates at given steps; clipping; what Adafactor's parameter scale does."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config import TrainConfig
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
        optimizer="adafactor",
        warmup_steps=0,
        lr_decay="constant",
        clip_norm=1e9,
        adafactor_parameter_scale=scaled,
    )
    params, grads = {"a": jnp.zeros((4, 4))}, {"a": jnp.full((4, 4), 0.3)}
    update = first_update(config, params, grads)
    # Its first step has unit RMS; the parameter scale multiplies it by max(RMS(0), 1e-3).
    np.testing.assert_allclose(np.abs(update["a"]), size, rtol=1e-3)
