"""Gaussian data, whose ideal denoiser is known in closed form.

The data are "pictures" of 1x1x3 drawn from N(m, C). The ideal denoiser E[x | z] is affine in z.
"""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import samplers, schedules
from imagen_jax.diffusion.samplers import Prediction

MEAN = np.array([0.3, -0.2, 0.1])
ROOT = np.array([[0.5, 0.0, 0.0], [0.3, 0.4, 0.0], [-0.2, 0.1, 0.25]])
COVARIANCE = ROOT @ ROOT.T
IDENTITY = np.eye(3)


def alpha_sigma(logsnr):
    return 1 / np.sqrt(1 + np.exp(-logsnr)), 1 / np.sqrt(1 + np.exp(logsnr))


def cosine(t):
    start, end = np.arctan(np.exp(-10.0)), np.arctan(np.exp(10.0))
    return -2 * np.log(np.tan(start + (end - start) * t))


def marginal(logsnr):
    """Mean and covariance of the noised data z."""
    alpha, sigma = alpha_sigma(logsnr)
    return alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * IDENTITY


def ideal_gain(logsnr):
    """G in E[x | z] = MEAN + G (z - alpha MEAN), by linear regression of x on z."""
    alpha, _ = alpha_sigma(logsnr)
    return alpha * COVARIANCE @ np.linalg.inv(marginal(logsnr)[1])


def ideal_denoiser(z, logsnr):
    """E[x | z] in jax, through C = U diag(c) U^T: a different route from `ideal_gain`."""
    values, vectors = np.linalg.eigh(COVARIANCE)
    vectors = jnp.asarray(vectors, jnp.float32)
    alpha = jnp.sqrt(jax.nn.sigmoid(logsnr))[:, None]
    noise_variance = jax.nn.sigmoid(-logsnr)[:, None]
    c = jnp.asarray(values, jnp.float32)[None]
    mean = jnp.asarray(MEAN, jnp.float32)[None]
    gain = alpha * c / (alpha**2 * c + noise_variance)
    centred = jnp.einsum("bi,ij->bj", z[:, 0, 0] - alpha * mean, vectors)
    x_hat = mean + jnp.einsum("bj,ij->bi", gain * centred, vectors)
    return x_hat[:, None, None]


def measure_affine(function):
    """A, b of an affine function of `[B, 1, 1, 3]` images, from its values at 0 and a basis."""
    inputs = jnp.asarray(np.concatenate([np.zeros((1, 3)), IDENTITY]), jnp.float32)
    outputs = np.asarray(function(inputs[:, None, None]), np.float64)[:, 0, 0]
    return (outputs[1:] - outputs[0]).T, outputs[0]


def run(z_1, keys, num_steps, sampler, denoise=ideal_denoiser, hook=None):
    grid = samplers.uniform_grid(schedules.logsnr_cosine, num_steps)
    return samplers.sample(as_denoiser(denoise), z_1, keys, grid, sampler, hook)


def as_denoiser(x_hat_of):
    return lambda z, logsnr: Prediction(x_hat_of(z, logsnr))
