"""UniPC (Zhao et al. 2023): a predictor of orders 1 to 3 with a corrector that costs no call."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.checks import check_choice
from imagen_jax.diffusion.samplers.base import Denoiser, Interval
from imagen_jax.diffusion.samplers.dpmpp import check_order, midpoint_difference
from imagen_jax.diffusion.samplers.exponential import (
    SHORTEST,
    History,
    moment,
    slope_terms,
    transfer,
    usable_order,
    width,
)
from imagen_jax.diffusion.schedules import alpha_sigma

Array = jax.Array

SOLVER_TYPES = ("bh1", "bh2")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Predicted:
    """What the corrector must know of the step before.

    Attributes:
      logsnr: scalar, where that step started.
      order: int32 scalar, of that step; 0 before the first one.
      integral: `[B, H, W, C]`, the part of its integral beyond a constant x_hat.
    """

    logsnr: Array
    order: Array
    integral: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UniPC:
    """UniPC in x_hat; deterministic, one call of the denoiser a step.

    The x_hat of a step also corrects the z that it was called with, which raises the order of the
    predictor by one.

    Attributes:
      order: of the predictor, 1, 2 or 3.
      solver_type: "bh2" (B(h) = e^h - 1 in the paper) or "bh1" (B(h) = h, for fewer than ten steps
        without guidance). It weighs the differences where the order leaves their weight open: in
        a predictor of order 2 and a corrector of order 1.
      lower_order_final: the order is at most the number of steps that are left, which is steadier
        with few steps. (The last step returns x_hat whatever the order.)

    Raises:
      UserError: a value outside its range.
    """

    kind: ClassVar[str] = "unipc"
    calls_per_step: ClassVar[int] = 1

    order: int = dataclasses.field(default=2, metadata={"static": True})
    solver_type: str = dataclasses.field(default="bh2", metadata={"static": True})
    lower_order_final: bool = dataclasses.field(default=True, metadata={"static": True})

    def __post_init__(self) -> None:
        check_order(self.order)
        check_choice("solver_type", self.solver_type, SOLVER_TYPES)

    @property
    def min_steps(self) -> int:
        """See `Sampler`."""
        return self.order

    def init(self, z: Array, grid: Array) -> tuple[History, Predicted, Array]:
        """The x_hat of the steps before, the step to correct and the number of steps left."""
        nothing = Predicted(grid[0], jnp.zeros((), jnp.int32), jnp.zeros_like(z))
        steps_left = jnp.asarray(grid.shape[0] - 1, jnp.int32)
        # One more than the order looks back: the corrector is a step late.
        return History.empty(z, grid, self.order), nothing, steps_left

    def step(
        self,
        denoise: Denoiser,
        z: Array,
        carry: tuple[History, Predicted, Array],
        interval: Interval,
        keys: Array,
    ) -> tuple[Array, Array, tuple[History, Predicted, Array]]:
        """See `Sampler`."""
        del keys
        history, predicted, steps_left = carry
        logsnr_t, logsnr_s = interval.logsnr_t, interval.logsnr_s
        x_hat = denoise(z, jnp.full((z.shape[0],), logsnr_t)).x_hat
        # As a difference, so that what a hook did to z stays.
        alpha_t, _ = alpha_sigma(logsnr_t)
        z = z + alpha_t * self._correction(x_hat, logsnr_t, history, predicted)

        h = width(logsnr_t, logsnr_s)
        order = usable_order(self.order, history, steps_left, self.lower_order_final)
        integral = self._predict(h, x_hat, history.nodes(logsnr_t)[: self.order - 1], order)
        z_s = transfer(z, moment(0, h) * x_hat + integral, logsnr_t, logsnr_s)
        moved = Predicted(logsnr_t, order, integral)
        stayed = dataclasses.replace(predicted, order=jnp.zeros_like(order))
        predicted = jax.tree.map(lambda a, b: jnp.where(h > SHORTEST, a, b), moved, stayed)
        return z_s, x_hat, (history.pushed(x_hat, logsnr_t, h), predicted, steps_left - 1)

    def _predict(
        self, h: Array, x_hat: Array, nodes: list[tuple[Array, Array]], order: Array
    ) -> Array:
        """The part of the integral over a step of width h beyond a constant x_hat (UniP)."""
        integral = jnp.zeros_like(x_hat)
        if nodes:
            slope = midpoint_difference(h, x_hat, nodes)
            integral += jnp.where(order == 2, self._b(h) * slope, 0.0)
        if len(nodes) > 1:
            integral += jnp.where(order == 3, sum(slope_terms(h, x_hat, nodes)), 0.0)
        return integral

    def _correction(
        self, x_hat: Array, logsnr_t: Array, history: History, predicted: Predicted
    ) -> Array:
        """What UniC adds to the integral of the step that ended at t, now that x_hat is known."""
        h = width(predicted.logsnr, logsnr_t)
        before = history.x_hats[0]
        nodes = [(h, x_hat), *history.nodes(predicted.logsnr)[1:]]
        parts = slope_terms(h, before, nodes)
        integral = jnp.where(predicted.order == 1, 0.5 * self._b(h) * (x_hat - before), 0.0)
        for order in range(2, self.order + 1):
            integral += jnp.where(predicted.order == order, sum(parts[:order]), 0.0)
        return jnp.where(predicted.order > 0, integral - predicted.integral, 0.0)

    def _b(self, h: Array) -> Array:
        """B(h) in the signs and the scale of the integral."""
        return h if self.solver_type == "bh1" else moment(0, h)
