"""The first values of parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.models import initialization


def test_kernels_get_their_standard_deviation_and_the_rest_is_kept(monkeypatch):
    monkeypatch.setattr(initialization, "SHARED_DRAW_MAX_SIZE", 10_000)
    key = jax.random.key(0)
    stds = {
        "large": {"kernel": initialization.fan_in_std(key, (3, 3, 25, 80))},
        "small": {"kernel": initialization.fan_in_std(key, (100, 100)), "bias": jnp.zeros(3)},
        "stacked": {"kernel": initialization.fan_in_std_stacked(key, (4, 25, 100))},
        "zero": {"kernel": jnp.zeros((5, 5))},
        "norm": {"scale": jnp.ones(4)},
    }
    params = initialization.draw_kernels(stds, key)
    for name, std in (("large", 1 / 15), ("small", 0.1), ("stacked", 0.2)):
        kernel = np.asarray(params[name]["kernel"]).ravel()
        # The standard deviation of 10,000 draws is known to 0.7 %.
        np.testing.assert_allclose(kernel.std(), std, rtol=0.03)
        assert abs(kernel.mean()) < 0.05 * std
        assert np.unique(kernel).size > 0.99 * kernel.size
    np.testing.assert_array_equal(params["zero"]["kernel"], 0.0)
    np.testing.assert_array_equal(params["norm"]["scale"], 1.0)
    drawn = [np.asarray(params[n]["kernel"]).ravel()[:10_000] for n in ("small", "stacked")]
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.05  # 5 standard errors: not the same noise
