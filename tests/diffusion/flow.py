"""The probability-flow ODE of Gaussian data, elementwise, with its exact solution in float64.

Each value of a picture is drawn from a normal distribution of its own, N(MEANS, VARIANCES).
"""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion.samplers import Interval, Prediction

MEANS = np.linspace(-0.8, 0.8, 12).reshape(1, 2, 2, 3)
VARIANCES = np.linspace(0.05, 1.5, 12).reshape(1, 2, 2, 3)


def alpha_sigma(logsnr):
    return 1 / np.sqrt(1 + np.exp(-logsnr)), 1 / np.sqrt(1 + np.exp(logsnr))


def gaussian_denoiser(z, logsnr):
    """E[x | z], in the dtype of z."""
    level = logsnr[:, None, None, None]
    alpha, noise = jnp.sqrt(jax.nn.sigmoid(level)), jax.nn.sigmoid(-level)
    means, variances = jnp.asarray(MEANS, z.dtype), jnp.asarray(VARIANCES, z.dtype)
    gain = alpha * variances / (alpha**2 * variances + noise)
    return Prediction(means + gain * (z - alpha * means))


def deviation(logsnr):
    """Of z at a noise level."""
    alpha, sigma = alpha_sigma(logsnr)
    return np.sqrt(alpha**2 * VARIANCES + sigma**2)


def flow(z, logsnr_t, logsnr_s):
    """The exact solution: z keeps its distance from the mean in standard deviations."""
    (alpha_t, _), (alpha_s, _) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
    scaled = (z - alpha_t * MEANS) / deviation(logsnr_t)
    return alpha_s * MEANS + deviation(logsnr_s) * scaled


def integrate(denoise, z, keys, grid, sampler):
    """z at the end of the grid, where `samplers.sample` returns the x_hat of the last step."""

    @jax.jit
    def step(z, carry, index, logsnr_t, logsnr_s):
        interval = Interval(index, logsnr_t, logsnr_s, jnp.asarray(False))
        z, _, carry = sampler.step(denoise, z, carry, interval, keys)
        return z, carry

    carry = sampler.init(z, grid)
    for index in range(grid.shape[0] - 1):
        z, carry = step(z, carry, index, grid[index], grid[index + 1])
    return z
