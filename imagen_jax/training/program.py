"""The compiled programs of training, for the loop, the planner and check_data alike."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_jax.errors import UserError
from imagen_jax.parallel.compiler import compiler_options
from imagen_jax.parallel.mesh import batch_sharding, batch_shards, replicated
from imagen_jax.stage import Stage
from imagen_jax.training.activities import compile_now
from imagen_jax.training.optimizer import make_optimizer
from imagen_jax.training.state import TrainState, abstract_state, init_state, state_from_params
from imagen_jax.training.step import make_condition_gap, make_train_step
from imagen_jax.types import Array, Batch, Params, TextCond

# Folded into a stage's key for its first parameters; steps fold in their number, from 0.
INIT = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class TrainProgram:
    """The train step of a stage on a mesh.

    Attributes:
      stage: what is trained.
      mesh: the devices; they may be described only (see `planning.topology`).
      text_length: tokens of a caption, padding included.

    Raises:
      UserError: the batch does not divide over the mesh.
    """

    stage: Stage
    mesh: Mesh
    text_length: int

    def __post_init__(self) -> None:
        train = self.stage.config.train
        shards, what = batch_shards(self.mesh), "mesh's data x fsdp shards"
        if train.accumulate > 1:
            shards *= train.accumulate
            what += f" times train.accumulate={train.accumulate}"
        if train.batch_size % shards:
            near = max(shards, train.batch_size // shards * shards)
            raise UserError(
                f"config.stages.{self.stage.name}.train.batch_size={train.batch_size} does not "
                f"divide over the {shards} {what}; set it to a multiple of {shards}, for example "
                f"{near}"
            )

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of the stage."""
        return make_optimizer(self.stage.config.train)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The train state as `ShapeDtypeStruct`s with their shardings."""
        return abstract_state(self.stage.network, self.optimizer, self.mesh)

    @functools.cached_property
    def key(self) -> Array:
        """The base key of the run, on the mesh."""
        return jax.jit(self.stage.key, out_shardings=replicated(self.mesh))()

    def abstract_key(self) -> jax.ShapeDtypeStruct:
        """The shape of `key`; nothing is computed, so the devices need not exist."""
        key = jax.eval_shape(self.stage.key)
        return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(self.mesh))

    def abstract_batch(self, shape: tuple[int, int] | None = None) -> Batch:
        """The shapes and shardings of a batch of pictures of `shape` (H, W).

        By default that of a stage without buckets.
        """
        size = self.stage.config.train_size
        height, width = shape or (size, size)
        count, length = self.stage.config.train.batch_size, self.text_length
        sharding = batch_sharding(self.mesh)

        def leaf(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        return Batch(
            image=leaf((count, height, width, 3), jnp.uint8),
            text=TextCond(
                tokens=leaf((count, length, self.stage.text_dim), jnp.float32),
                mask=leaf((count, length), jnp.bool_),
            ),
        )

    def lower(self, shape: tuple[int, int] | None = None) -> jax.stages.Lowered:
        """The step before it is compiled; nothing is allocated."""
        jitted = jax.jit(
            make_train_step(self.stage, self.optimizer),
            donate_argnums=0,
            out_shardings=(
                jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state),
                replicated(self.mesh),
            ),
        )
        with jax.set_mesh(self.mesh):  # see models/batch_axis.py
            return jitted.lower(
                self.abstract_state, self.abstract_batch(shape), self.abstract_key()
            )

    def compile(
        self,
        shape: tuple[int, int] | None = None,
        compiling: Callable[..., jax.stages.Compiled] = compile_now,
    ) -> jax.stages.Compiled:
        """`(state, batch, key) -> (state, metrics)`; it cannot be recompiled by accident.

        The state is donated. `compiling(lower, options)` calls the compiler.
        """
        return compiling(lambda: self.lower(shape), compiler_options(self.mesh.devices.flat[0]))

    def compile_gap(
        self,
        shape: tuple[int, int] | None = None,
        compiling: Callable[..., jax.stages.Compiled] = compile_now,
    ) -> jax.stages.Compiled:
        """`(params, batch, key) -> gap`, see `make_condition_gap`."""
        jitted = jax.jit(make_condition_gap(self.stage), out_shardings=replicated(self.mesh))

        def lower() -> jax.stages.Lowered:
            with jax.set_mesh(self.mesh):
                return jitted.lower(
                    self.abstract_state.ema_params, self.abstract_batch(shape), self.abstract_key()
                )

        return compiling(lower)

    def init_state(self) -> TrainState:
        """A fresh state, each device making only its own shards."""
        key = jax.random.fold_in(self.key, INIT)
        return init_state(self.stage.network, self.optimizer, self.mesh, key)

    def state_from_params(self, params: Params) -> TrainState:
        """A sharded state at step 0 that starts from loaded parameters."""
        return state_from_params(params, self.optimizer, self.mesh)
