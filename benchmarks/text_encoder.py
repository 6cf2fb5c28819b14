"""Memory and speed of T5 encoders by size, compiled for a TPU or run on this machine.

    python -m benchmarks.text_encoder --size=xxl --topology=v5e:1x1 --batch_size=64
    python -m benchmarks.text_encoder --size=xxl --topology=v5e:2x2 --batch_size=256
    python -m benchmarks.text_encoder --size=large --measure --batch_size=8

The first two need no TPU, but its compiler (`pip install 'imagen-jax[aot]'`) and the environment
JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1. They load no weights; `--measure` draws random ones. The
estimated time counts only matrix products, at the chip's peak.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from imagen_jax.config import MeshConfig
from imagen_jax.parallel.mesh import AXES, batch_sharding, make_mesh
from imagen_jax.parallel.sharding import frozen_shardings
from imagen_jax.text import t5_load
from imagen_jax.text.encoder import encode
from imagen_jax.text.t5 import T5Config

# d_model, d_ff, layers, heads of the v1.1 encoders (their config.json on the hub).
SIZES = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}
# Dense bfloat16 FLOP/s of a chip, from its data sheet.
PEAKS = {"v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}


def t5_config(size: str) -> T5Config:
    """The configuration of the T5 v1.1 encoder of that size, in bfloat16."""
    d_model, d_ff, layers, heads = SIZES[size]
    return T5Config(
        d_model=d_model, d_ff=d_ff, num_layers=layers, num_heads=heads,
        feed_forward="gated-gelu", dtype="bfloat16",
    )  # fmt: skip


def flops_per_caption(config: T5Config, length: int) -> float:
    """FLOPs of the matrix products for one caption, attention included."""
    c = config
    inner = c.num_heads * c.d_kv
    weights = 4 * c.d_model * inner + 3 * c.d_model * c.d_ff
    return 2.0 * c.num_layers * length * (weights + 2 * length * inner)


def tpu_mesh(topology: str) -> Mesh:
    """A mesh of all chips of a topology along "fsdp", without the chips."""
    from jax.experimental import topologies

    generation, _, shape = topology.partition(":")
    extra = {"chips_per_host_bounds": (1, 1, 1)} if shape == "1x1" else {}
    if generation == "v4":
        extra["chip_config_name"] = "megacore"
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **extra).devices
    return Mesh(np.array(devices).reshape(1, -1, 1), AXES, axis_types=(AxisType.Auto,) * 3)


def compile_for(config: T5Config, mesh: Mesh, batch: int, length: int) -> jax.stages.Compiled:
    """Compiles the program of training and `encode_text` from shapes alone."""
    abstract = t5_load.abstract_params(config, config.dtype)
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        frozen_shardings(abstract, mesh),
    )
    rows = batch_sharding(mesh)
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=rows)
    mask = jax.ShapeDtypeStruct((batch, length), jnp.bool_, sharding=rows)
    return encode.lower(params, config, ids, mask, rows).compile()


def collectives(program: str) -> dict[str, int]:
    """Number of collectives of each kind in a compiled program; a loop counts once."""
    found = re.findall(
        r"\b(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(",
        program,
    )
    return {kind: found.count(kind) for kind in sorted(set(found))}


def plan(config: T5Config, topology: str, batch: int, length: int) -> None:
    """Compiles for a TPU and prints memory, collectives and the minimum time."""
    mesh = tpu_mesh(topology)
    start = time.perf_counter()
    compiled = compile_for(config, mesh, batch, length)
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    gib = 2.0**30
    print(f"{topology}, {mesh.size} chip(s), {batch} captions of {length} tokens")
    print(f"  compiled in        {seconds:.0f} s")
    print(f"  peak a chip        {memory.peak_memory_in_bytes / gib:.2f} GiB")
    print(f"  weights a chip     {memory.argument_size_in_bytes / gib:.2f} GiB")
    print(f"  collectives        {collectives(compiled.as_text()) or 'none'}")
    flops = flops_per_caption(config, length) * batch
    least = flops / PEAKS[topology.partition(":")[0]] / mesh.size
    print(f"  matrix products    {flops / 1e12:.1f} TFLOP: at least {1e3 * least:.0f} ms, at most "
          f"{batch / least:,.0f} captions/s")  # fmt: skip


def measure(config: T5Config, batch: int, length: int) -> None:
    """Runs random weights on the local devices and prints captions/s."""
    mesh = make_mesh(MeshConfig())
    abstract = t5_load.abstract_params(config, config.dtype)
    shardings = frozen_shardings(abstract, mesh)

    @functools.partial(jax.jit, out_shardings=shardings)
    def draw(key: jax.Array) -> dict:
        keys = jax.random.split(key, len(jax.tree.leaves(abstract)))
        leaves = [
            0.02 * jax.random.normal(k, leaf.shape, leaf.dtype)
            for k, leaf in zip(keys, jax.tree.leaves(abstract), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    params = draw(jax.random.key(0))
    rows = batch_sharding(mesh)
    ids = jax.device_put(np.full((batch, length), 7, np.int32), rows)
    mask = jax.device_put(np.ones((batch, length), bool), rows)

    def timed(function, *arguments) -> float:
        jax.block_until_ready(function(*arguments))
        count, start = 0, time.perf_counter()
        while count < 3 or time.perf_counter() - start < 5:
            out = function(*arguments)
            count += 1
            jax.block_until_ready(out)
        return (time.perf_counter() - start) / count

    seconds = timed(lambda: encode(params, config, ids, mask, rows))
    side = 8192 if jax.devices()[0].platform != "cpu" else 1024
    square = jnp.ones((side, side), config.dtype)
    peak = 2 * side**3 / timed(jax.jit(jnp.matmul), square, square) * mesh.size
    flops = flops_per_caption(config, length) * batch
    print(f"{mesh.size} x {jax.devices()[0].device_kind}, {batch} captions of {length} tokens")
    print(f"  {batch / seconds:,.2f} captions/s, {flops / seconds / 1e12:.2f} TFLOP/s: "
          f"{100 * flops / seconds / peak:.0f} % of a {side} x {side} product's rate")  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_encoder")
    parser.add_argument("--size", default="xxl", choices=SIZES)
    parser.add_argument("--topology", default="v5e:1x1", help="such as v5e:2x2")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--measure", action="store_true", help="run on this machine")
    flags = parser.parse_args(arguments)
    config = t5_config(flags.size)
    leaves = jax.tree.leaves(t5_load.abstract_params(config, config.dtype))
    total = sum(leaf.size for leaf in leaves)
    print(f"T5 v1.1 {flags.size}: {total:,} parameters with the embedding, "
          f"{2 * total / 2**30:.2f} GiB in bfloat16")  # fmt: skip
    if flags.measure:
        measure(config, flags.batch_size, flags.length)
    else:
        plan(config, flags.topology, flags.batch_size, flags.length)


if __name__ == "__main__":
    main(sys.argv[1:])
