"""What the solvers of the diffusion ODE share: its exact integral over one step.

In lambda = log(alpha / sigma) = logsnr / 2 the probability-flow ODE from t to s is solved by

    z_s = (sigma_s / sigma_t) z_t + alpha_s I,
    I = integral over u from 0 to h of e^(u - h) x_hat(lambda_t + u), h = lambda_s - lambda_t

(DPM-Solver++, Lu et al. 2022, eq. 8). Solvers differ in how they replace x_hat(lambda): by a
constant, which is DDIM, or by a polynomial through the x_hat of several noise levels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.schedules import alpha_sigma

Array = jax.Array

# An interval of lambda below which two noise levels count as one: differences of x_hat over it
# would be rounding, magnified. A clipped schedule repeats its end.
SHORTEST = 1e-3
_SERIES_TERMS = 16  # the remainder at h = 1 is below 1 / 17! = 3e-15


def width(logsnr_t: Array, logsnr_s: Array) -> Array:
    """h, the step in lambda from t to s; not negative where the log-SNR does not fall."""
    return 0.5 * (logsnr_s - logsnr_t)


def moment(k: int, h: Array) -> Array:
    """The integral over u from 0 to h of e^(u - h) u^k; h is a float scalar, not negative.

    Closed forms divide differences of nearly equal numbers by h, so a series serves for h < 1.
    """
    # h^(k+1) k! / (k+1)! (1 - h / (k+2) (1 - h / (k+3) (1 - ...)))
    series = jnp.ones_like(h)
    for n in reversed(range(_SERIES_TERMS)):
        series = 1.0 - h / (n + k + 2) * series
    series = h ** (k + 1) / (k + 1) * series
    large = jnp.maximum(h, 1.0)
    closed = -jnp.expm1(-large)
    for i in range(1, k + 1):
        closed = large**i - i * closed
    return jnp.where(h < 1.0, series, closed)


def transfer(z: Array, integral: Array, logsnr_t: Array, logsnr_s: Array) -> Array:
    """z_s from z_t and the integral I of the module's docstring.

    Args:
      z, integral: `[B, H, W, C]`.
      logsnr_t, logsnr_s: scalars, logsnr_s >= logsnr_t.
    """
    _, sigma_t = alpha_sigma(logsnr_t)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    return (sigma_s / sigma_t) * z + alpha_s * integral


def first_order(z: Array, x_hat: Array, logsnr_t: Array, logsnr_s: Array) -> Array:
    """z_s with a constant x_hat: DDIM. Arguments as in `transfer`."""
    h = width(logsnr_t, logsnr_s)
    return transfer(z, moment(0, h) * x_hat, logsnr_t, logsnr_s)


def slope_terms(h: Array, x_hat: Array, nodes: Sequence[tuple[Array, Array]]) -> list[Array]:
    """The parts of I beyond a constant x_hat, for the polynomial through x_hat and `nodes`.

    Part j is what node j adds to the polynomial through those before it (Newton's form), so that
    the sum of the first j parts belongs to the polynomial of degree j.

    Args:
      h: scalar, the step in lambda.
      x_hat: `[B, H, W, C]` at t.
      nodes: up to 3 pairs of lambda - lambda_t (scalar, not 0, all different) and x_hat there.
    """
    table = [over(value - x_hat, u) for u, value in nodes]
    offsets = [u for u, _ in nodes]
    moments = [moment(k, h) for k in range(1, len(nodes) + 1)]
    parts = []
    # u (u - u_1) ... (u - u_{j-1}) as coefficients of u, u^2, ...
    coefficients = [1.0]
    for j, u in enumerate(offsets):
        weight = sum(c * m for c, m in zip(coefficients, moments, strict=False))
        parts.append(weight * table[j])
        coefficients = [
            a - u * b for a, b in zip([0.0, *coefficients], [*coefficients, 0.0], strict=True)
        ]
        for i in reversed(range(j + 1, len(nodes))):
            table[i] = over(table[i] - table[j], offsets[i] - u)
    return parts


def over(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, and 0 where the denominator is 0."""
    is_zero = denominator == 0
    return jnp.where(is_zero, 0.0, numerator / jnp.where(is_zero, 1.0, denominator))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """The x_hat of the steps before, newest first, at noise levels that all differ.

    Attributes:
      x_hats: `[B, H, W, C]` each.
      logsnrs: float scalars.
      count: int32 scalar, how many of them are there yet.
    """

    x_hats: tuple[Array, ...]
    logsnrs: tuple[Array, ...]
    count: Array

    @classmethod
    def empty(cls, z: Array, grid: Array, length: int) -> History:
        """A history that remembers `length` steps and holds none."""
        return cls(
            (jnp.zeros_like(z),) * length,
            # Levels that no grid has, all different: what is computed from them is left out.
            tuple(jnp.asarray(-1000.0 - i, grid.dtype) for i in range(length)),
            jnp.zeros((), jnp.int32),
        )

    def nodes(self, logsnr_t: Array) -> list[tuple[Array, Array]]:
        """See `slope_terms`."""
        offsets = (width(logsnr_t, logsnr) for logsnr in self.logsnrs)
        return list(zip(offsets, self.x_hats, strict=True))

    def pushed(self, x_hat: Array, logsnr_t: Array, h: Array) -> History:
        """The history after a step of width `h` from t; the same if the step leads nowhere."""
        length = len(self.x_hats)
        new = History(
            (x_hat, *self.x_hats)[:length],
            (logsnr_t, *self.logsnrs)[:length],
            jnp.minimum(self.count + 1, length),
        )
        return jax.tree.map(lambda a, b: jnp.where(h > SHORTEST, a, b), new, self)


def usable_order(order: int, history: History, steps_left: Array, lower_order_final: bool) -> Array:
    """The order of a multistep method at a step: less at the start and, if asked, at the end.

    Args:
      order: the highest.
      steps_left: int32 scalar, this step included.
    """
    usable = jnp.minimum(order, history.count + 1)
    return jnp.minimum(usable, steps_left) if lower_order_final else usable
