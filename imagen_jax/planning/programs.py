"""Compiles the real train step and sampler of a stage for given devices."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.config import CascadeConfig
from imagen_jax.parallel.compiler import compiler_options
from imagen_jax.parallel.mesh import batch_sharding, batch_shards, make_mesh, replicated
from imagen_jax.planning.topology import Topology, devices_of
from imagen_jax.sampling.loop import make_settings, sampler_program, static_arguments
from imagen_jax.stage import Stage, open_stage
from imagen_jax.training.flops import matrix_flops
from imagen_jax.training.program import TrainProgram
from imagen_jax.training.state import state_bytes
from imagen_jax.training.step import make_train_step
from imagen_jax.training.summary import bytes_per_device, count_parameters
from imagen_jax.types import TextCond

TRAIN, SAMPLE = "train", "sample"
# `exec_time_optimization_effort`: how long the compiler tries to make the program faster.
EFFORTS = {"low": -1.0, "full": 0.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about one compiled program. Bytes are per device.

    Attributes:
      program: "train" or "sample".
      mesh: sizes of the mesh axes by name.
      parameters: scalars in the network.
      rows: pictures per run of the program, over all devices.
      model_flops: operations in its matrix products and convolutions, all devices, as the network
        is defined.
      executed_flops: the same with what is computed twice to save memory.
      state_bytes: train state (or weights), as numbers without padding.
      batch_bytes: the other inputs.
      argument_bytes: both on the device, with padding.
      peak_bytes: peak memory, arguments included; None if the program did not fit.
      code_bytes: the program itself.
      too_large: "", or the message of the compiler if the program did not fit.
      needed_bytes: the memory that this message names, None if it names none.
      compile_seconds: time of the compilation.
    """

    program: str
    mesh: dict[str, int]
    parameters: int
    rows: int
    model_flops: int
    executed_flops: int
    state_bytes: int
    batch_bytes: int
    argument_bytes: int | None = None
    peak_bytes: int | None = None
    code_bytes: int | None = None
    too_large: str = ""
    needed_bytes: float | None = None
    compile_seconds: float = 0.0


def lower_program(
    program: str, config: CascadeConfig, name: str, text_dim: int, topology: Topology
) -> tuple[Facts, jax.stages.Lowered]:
    """Traces one program of the stage `name` for `topology`; what follows from that is known.

    Raises:
      UserError: settings that do not fit each other or the devices.
    """
    stage = open_stage(config, name, text_dim)
    mesh = make_mesh(config.mesh, devices_of(topology), state_bytes=state_bytes(stage))
    train = TrainProgram(stage, mesh, config.text.max_length)
    return _sampler(train) if program == SAMPLE else _train_step(train)


def compile_program(
    facts: Facts, lowered: jax.stages.Lowered, topology: Topology, effort: str
) -> tuple[Facts, str]:
    """Compiles what `lower_program` returned.

    Returns:
      All facts, and the compiled program as HLO text ("" if it did not fit).
    """
    options: dict[str, Any] = compiler_options(devices_of(topology)[0])
    if topology.version:
        options["exec_time_optimization_effort"] = EFFORTS[effort]
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        message = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        facts = dataclasses.replace(
            facts, too_large=message[:500], needed_bytes=needed_bytes(message)
        )
        return _timed(facts, start), ""
    memory = compiled.memory_analysis()
    facts = dataclasses.replace(
        facts,
        argument_bytes=memory.argument_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
    )
    return _timed(facts, start), compiled.as_text()


def needed_bytes(message: str) -> float | None:
    """What a message of the TPU compiler says would be needed: "... (149.14G) exceeds ..."."""
    match = re.search(r"\((\d+(?:\.\d+)?)([KMGT])\) exceeds", message) or re.search(
        r"Used (\d+(?:\.\d+)?)([KMGT]) of", message
    )
    if match is None:
        return None
    return float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1)


def _timed(facts: Facts, start: float) -> Facts:
    return dataclasses.replace(facts, compile_seconds=round(time.perf_counter() - start, 1))


def _train_step(train: TrainProgram) -> tuple[Facts, jax.stages.Lowered]:
    state, batch = train.abstract_state, train.abstract_batch()

    def flops(stage: Stage) -> int:
        step = make_train_step(stage, train.optimizer)
        return matrix_flops(step, state, batch, train.abstract_key())

    facts = Facts(
        program=TRAIN,
        mesh=dict(train.mesh.shape),
        parameters=count_parameters(state.params),
        rows=train.stage.config.train.batch_size,
        model_flops=flops(train.stage.without_remat()),
        executed_flops=flops(train.stage),
        state_bytes=bytes_per_device(state),
        batch_bytes=bytes_per_device(batch),
    )
    return facts, train.lower()


def _sampler(train: TrainProgram) -> tuple[Facts, jax.stages.Lowered]:
    """One picture on each part of the batch; the weights lie as in training."""
    stage, mesh = train.stage, train.mesh
    rows, over_rows = batch_shards(mesh), batch_sharding(mesh)
    params = train.abstract_state.params
    settings = jax.eval_shape(lambda: make_settings(stage.config.sample))

    def leaf(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=over_rows)

    captions = TextCond(
        tokens=leaf((train.text_length, stage.text_dim), jnp.float32),
        mask=leaf((train.text_length,), jnp.bool_),
    )
    side, low = stage.config.resolution, stage.config.low_resolution
    inputs = (
        captions,
        leaf((), train.abstract_key().dtype),
        jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), settings
        ),
        leaf((low, low, 3), jnp.float32) if low else None,
    )
    static = static_arguments(stage, (side, side))
    program = sampler_program(mesh.devices.flat[0])
    flops = matrix_flops(lambda *args: program(*args, **static), params, *inputs)
    facts = Facts(
        program=SAMPLE,
        mesh=dict(mesh.shape),
        parameters=count_parameters(params),
        rows=rows,
        model_flops=flops,
        executed_flops=flops,
        state_bytes=bytes_per_device(params),
        batch_bytes=bytes_per_device((captions, inputs[3])),
    )
    with jax.set_mesh(mesh):
        return facts, program.lower(params, *inputs, **static)
