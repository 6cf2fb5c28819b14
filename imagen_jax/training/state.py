"""The train state and its creation, sharded, inside jit."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_jax.models import init_params
from imagen_jax.parallel.sharding import tree_shardings
from imagen_jax.types import Array, Params


@flax.struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
      step: int32 scalar, updates done.
      params: float32 parameters.
      ema_params: their moving average, which is what samples are drawn from.
      opt_state: the optimizer's state.
    """

    step: Array
    params: Params
    ema_params: Params
    opt_state: Any


def create_state(model: nn.Module, optimizer: optax.GradientTransformation, key: Array):
    """A fresh state. Call it inside jit (or `jax.eval_shape`)."""
    return state_of(init_params(model, key), optimizer)


def state_of(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0 of given parameters, which also start the EMA."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: a donated state must not hold one buffer twice.
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state as `ShapeDtypeStruct`s that carry their shardings; nothing is allocated."""
    shapes = jax.eval_shape(
        lambda: create_state(model, optimizer, jax.random.key(0)),
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, mesh: Mesh, key: Array
) -> TrainState:
    """A fresh state, each device making only its own shards."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh))
    create = jax.jit(lambda k: create_state(model, optimizer, k), out_shardings=shardings)
    return create(key)


def state_from_params(
    params: Params, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """A sharded state at step 0 that starts from loaded parameters."""
    shapes = jax.eval_shape(lambda p: state_of(p, optimizer), params)
    create = jax.jit(lambda p: state_of(p, optimizer), out_shardings=tree_shardings(shapes, mesh))
    return create(params)
