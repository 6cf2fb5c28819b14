"""DPM-Solver++ (Lu et al. 2022): solvers of the probability-flow ODE of orders 1 to 3."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.checks import check_choice
from imagen_jax.diffusion.samplers.base import Denoiser, Interval
from imagen_jax.diffusion.samplers.exponential import (
    History,
    first_order,
    moment,
    over,
    slope_terms,
    transfer,
    usable_order,
    width,
)
from imagen_jax.errors import UserError

Array = jax.Array

VARIANTS = ("multistep", "singlestep")
ORDERS = (1, 2, 3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++; deterministic. Order 1 is `DDIM(eta=0)`.

    "multistep" calls the denoiser once a step and extrapolates from the steps before (2M of the
    paper, with the midpoint formula; 3M). "singlestep" calls it `order` times within the step, at
    equal distances in log-SNR, and remembers nothing (2S, 3S). So 20 steps are 20 calls of the
    denoiser for multistep, and 40 for singlestep of order 2.

    The first steps of multistep have a lower order. That costs nothing where sampling starts from
    noise, since x_hat hardly changes there.

    Attributes:
      order: 1, 2 or 3.
      variant: "multistep" or "singlestep".
      lower_order_final: order 3 of multistep takes order 2 in the step before the last, which is
        steadier with few steps. (The last step returns x_hat whatever the order.)

    Raises:
      UserError: a value outside its range.
    """

    kind: ClassVar[str] = "dpmpp"

    order: int = dataclasses.field(default=2, metadata={"static": True})
    variant: str = dataclasses.field(default="multistep", metadata={"static": True})
    lower_order_final: bool = dataclasses.field(default=True, metadata={"static": True})

    def __post_init__(self) -> None:
        check_order(self.order)
        check_choice("variant", self.variant, VARIANTS)

    @property
    def calls_per_step(self) -> int:
        """See `Sampler`."""
        return self.order if self.variant == "singlestep" else 1

    @property
    def min_steps(self) -> int:
        """See `Sampler`."""
        return 1 if self.variant == "singlestep" else self.order

    def init(self, z: Array, grid: Array) -> tuple[History, Array]:
        """The x_hat of the steps before and the number of steps that are left."""
        length = 0 if self.variant == "singlestep" else self.order - 1
        return History.empty(z, grid, length), jnp.asarray(grid.shape[0] - 1, jnp.int32)

    def step(
        self,
        denoise: Denoiser,
        z: Array,
        carry: tuple[History, Array],
        interval: Interval,
        keys: Array,
    ) -> tuple[Array, Array, tuple[History, Array]]:
        """See `Sampler`."""
        del keys
        history, steps_left = carry
        levels = interval.logsnr_t, interval.logsnr_s
        if self.variant == "singlestep":
            z_s, x_hat = _SINGLESTEPS[self.order](denoise, z, *levels)
            return z_s, x_hat, (history, steps_left - 1)
        x_hat = denoise(z, jnp.full((z.shape[0],), interval.logsnr_t)).x_hat
        order = usable_order(self.order, history, steps_left, self.lower_order_final)
        z_s = multistep(z, x_hat, *levels, history, order)
        history = history.pushed(x_hat, interval.logsnr_t, width(*levels))
        return z_s, x_hat, (history, steps_left - 1)


def check_order(order: int) -> None:
    """Raises UserError unless a solver of this order exists."""
    if type(order) is not int or order not in ORDERS:
        raise UserError(f"order={order} must be 1, 2 or 3")


def multistep(
    z: Array, x_hat: Array, logsnr_t: Array, logsnr_s: Array, history: History, order: Array
) -> Array:
    """The multistep update from t to s.

    Order 2 is the midpoint formula of 2M (Algorithm 2). Order 3 integrates the parabola through
    three x_hat exactly; common implementations halve its second difference, which leaves order 2.

    Args:
      z, x_hat: `[B, H, W, C]` at t.
      logsnr_t, logsnr_s: scalars, logsnr_s >= logsnr_t.
      history: of the steps before; it remembers one less than the highest order.
      order: int32 scalar, at most one more than what the history holds.

    Returns:
      z_s `[B, H, W, C]`.
    """
    h = width(logsnr_t, logsnr_s)
    constant = moment(0, h)
    integral = constant * x_hat
    nodes = history.nodes(logsnr_t)
    if nodes:
        slope = midpoint_difference(h, x_hat, nodes)
        integral += jnp.where(order == 2, constant, 0.0) * slope
    if len(nodes) > 1:
        integral += jnp.where(order == 3, sum(slope_terms(h, x_hat, nodes)), 0.0)
    return transfer(z, integral, logsnr_t, logsnr_s)


def midpoint_difference(h: Array, x_hat: Array, nodes: list[tuple[Array, Array]]) -> Array:
    """How far x_hat moves up to the middle of the step, by the line through the newest node."""
    u, before = nodes[0]
    return over(0.5 * h, -u) * (x_hat - before)


def singlestep_1(
    denoise: Denoiser, z: Array, logsnr_t: Array, logsnr_s: Array
) -> tuple[Array, Array]:
    """The update of order 1; see `singlestep_2`."""
    x_hat = _x_hat(denoise, z, logsnr_t)
    return first_order(z, x_hat, logsnr_t, logsnr_s), x_hat


def singlestep_2(
    denoise: Denoiser,
    z: Array,
    logsnr_t: Array,
    logsnr_s: Array,
    logsnr_between: Array | None = None,
) -> tuple[Array, Array]:
    """The singlestep update of order 2 from t to s (2S, Algorithm 1).

    Args:
      denoise: see `Denoiser`; called twice.
      z: `[B, H, W, C]` at t.
      logsnr_t, logsnr_s: scalars, logsnr_s >= logsnr_t.
      logsnr_between: where the second call is; default: half-way.

    Returns:
      z_s and the x_hat of the second call, `[B, H, W, C]`.
    """
    between = 0.5 * (logsnr_t + logsnr_s) if logsnr_between is None else logsnr_between
    first = _x_hat(denoise, z, logsnr_t)
    second = _x_hat(denoise, first_order(z, first, logsnr_t, between), between)
    h = width(logsnr_t, logsnr_s)
    middle = first + over(0.5 * h, width(logsnr_t, between)) * (second - first)
    return first_order(z, middle, logsnr_t, logsnr_s), second


def singlestep_3(
    denoise: Denoiser, z: Array, logsnr_t: Array, logsnr_s: Array
) -> tuple[Array, Array]:
    """The singlestep update of order 3; the calls are at 0, 1/3 and 2/3 of the step in log-SNR.

    The data-prediction form of DPM-Solver-3 (Lu et al. 2022, "DPM-Solver", Algorithm 2).
    Arguments and result as in `singlestep_2`.
    """
    step = logsnr_s - logsnr_t
    at_1, at_2 = logsnr_t + step / 3.0, logsnr_t + step * (2.0 / 3.0)
    first = _x_hat(denoise, z, logsnr_t)
    second = _x_hat(denoise, first_order(z, first, logsnr_t, at_1), at_1)

    def by_line(logsnr: Array, slope_from: Array, u: Array) -> Array:
        """z at `logsnr` with the line through `first` and `slope_from`, which lies at u."""
        h = width(logsnr_t, logsnr)
        parts = slope_terms(h, first, [(u, slope_from)])
        return transfer(z, moment(0, h) * first + parts[0], logsnr_t, logsnr)

    third = _x_hat(denoise, by_line(at_2, second, width(logsnr_t, at_1)), at_2)
    return by_line(logsnr_s, third, width(logsnr_t, at_2)), third


_SINGLESTEPS = {1: singlestep_1, 2: singlestep_2, 3: singlestep_3}


def _x_hat(denoise: Denoiser, z: Array, logsnr: Array) -> Array:
    return denoise(z, jnp.full((z.shape[0],), logsnr)).x_hat
