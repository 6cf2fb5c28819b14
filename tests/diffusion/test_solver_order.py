"""Order of convergence of the solvers on the probability-flow ODE of Gaussian data.

In float64, since rounding in float32 would hide the third order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flow import flow, gaussian_denoiser, integrate

from imagen_jax.diffusion.samplers import DDIM, DPMSolver, Euler, Heun, SDEDPMSolver, UniPC


def warped(start, end, num_steps):
    """A smooth grid that is not uniform, whose steps differ by a factor of 3."""
    u = np.linspace(0.0, 1.0, num_steps + 1)
    return start + (end - start) * (u + u**2) / 2


def errors(sampler, start, end, numbers):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 1)
        z = jax.random.normal(jax.random.key(1), (1, 2, 2, 3), jnp.float64)
        found = []
        for number in numbers:
            grid = jnp.asarray(warped(start, end, number), jnp.float64)
            result = integrate(gaussian_denoiser, z, keys, grid, sampler)
            exact = flow(np.asarray(z), start, end)
            assert result.dtype == jnp.float64
            found.append(np.max(np.abs(np.asarray(result) - exact)))
    return np.array(found)


FULL = {"lower_order_final": False}
# Where sampling starts from noise x_hat hardly moves, so that the low order of a multistep method
# in its first steps leaves no trace; elsewhere their local error of order 2 limits the sum to 2.
FROM_NOISE = (-20.0, 4.0, (40, 80, 160, 320))
MIDDLE = (-4.0, 4.0, (10, 20, 40, 80))
ORDERS = [
    (DDIM(), 1, MIDDLE),
    (Euler(), 1, MIDDLE),
    (DPMSolver(order=1), 1, MIDDLE),
    (DPMSolver(order=2, **FULL), 2, MIDDLE),
    (DPMSolver(order=2), 2, MIDDLE),
    (DPMSolver(order=3, **FULL), 3, FROM_NOISE),
    # The very last step has order 1 here; in sampling it is the one that returns x_hat.
    (DPMSolver(order=3), 2, FROM_NOISE),
    (DPMSolver(order=1, variant="singlestep"), 1, MIDDLE),
    (DPMSolver(order=2, variant="singlestep"), 2, MIDDLE),
    (DPMSolver(order=3, variant="singlestep"), 3, MIDDLE),
    (SDEDPMSolver(eta=0.0), 2, MIDDLE),
    (Heun(), 2, MIDDLE),
    # The corrector of UniPC raises the order by one (Zhao et al. 2023, Theorem 3.1).
    (UniPC(order=1, solver_type="bh1", **FULL), 2, MIDDLE),
    (UniPC(order=1, solver_type="bh2", **FULL), 2, MIDDLE),
    (UniPC(order=2, solver_type="bh1", **FULL), 3, FROM_NOISE),
    (UniPC(order=2, solver_type="bh2", **FULL), 3, FROM_NOISE),
    (UniPC(order=3, **FULL), 4, FROM_NOISE),
]


@pytest.mark.parametrize("sampler, order, span", ORDERS, ids=str)
def test_the_error_falls_with_the_order_of_the_method(sampler, order, span):
    start, end, numbers = span
    found = errors(sampler, start, end, numbers)
    slopes = np.log2(found[:-1] / found[1:])
    # The next term of the error still bends the slope at the coarsest grids; it goes to the order.
    assert abs(slopes[-1] - order) < 0.3
