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
from imagen_jax.stage import Stage
from imagen_jax.training.optimizer import make_optimizer
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


def create_state(network: nn.Module, optimizer: optax.GradientTransformation, key: Array):
    """A fresh state. Call it inside jit (or `jax.eval_shape`)."""
    return state_of(init_params(network, key), optimizer)


def state_of(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0 of given parameters, which also start the EMA."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: a donated state must not hold one buffer twice.
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )


def state_bytes(stage: Stage) -> int:
    """Size of a stage's whole train state."""
    optimizer = make_optimizer(stage.config.train)
    shapes = jax.eval_shape(lambda: create_state(stage.network, optimizer, jax.random.key(0)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def abstract_state(
    network: nn.Module, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state as `ShapeDtypeStruct`s that carry their shardings; nothing is allocated."""
    shapes = jax.eval_shape(
        lambda: create_state(network, optimizer, jax.random.key(0)),
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )


def init_state(
    network: nn.Module, optimizer: optax.GradientTransformation, mesh: Mesh, key: Array
) -> TrainState:
    """A fresh state, each device making only its own shards."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(network, optimizer, mesh))
    create = jax.jit(lambda k: create_state(network, optimizer, k), out_shardings=shardings)
    return create(key)


def state_from_params(
    params: Params, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """A sharded state at step 0 that starts from loaded parameters."""
    shapes = jax.eval_shape(lambda p: state_of(p, optimizer), params)
    create = jax.jit(lambda p: state_of(p, optimizer), out_shardings=tree_shardings(shapes, mesh))
    return create(params)


@jax.jit
def state_digest(state: TrainState) -> Array:
    """A uint32 checksum: states that are equal bit for bit have the same.

    A change of a single number always changes it, any other change with probability 1 - 2^-32. It
    is a sum of integers, so the sharding of the state makes no difference. All leaves must have 32
    bits.
    """
    return sum(
        (_leaf_digest(leaf, jnp.uint32(n)) for n, leaf in enumerate(jax.tree.leaves(state))),
        start=jnp.uint32(0),
    )


# Jitted, so that it is traced once per shape and not once per leaf.
@jax.jit
def _leaf_digest(leaf: Array, number: Array) -> Array:
    """The sum over the leaf of each value's bits, mixed with its index."""
    place = jnp.broadcast_to(number, leaf.shape)
    for axis, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    return _mix(bits ^ _mix(place)).sum(dtype=jnp.uint32)


def _mix(bits: Array) -> Array:
    """The finalizer of MurmurHash3: a permutation of the 32-bit integers, each bit on all."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
