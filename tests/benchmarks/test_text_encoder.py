"""Sizes of the T5 encoders, and FLOPs of one caption."""

import jax
import pytest

from benchmarks import text_encoder
from imagen_jax.config import MeshConfig
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.text import t5_load
from imagen_jax.text.t5 import T5Config


@pytest.mark.parametrize(
    ("size", "millions"),
    [("small", 35.333), ("base", 109.629), ("large", 341.231), ("xl", 1223.527), ("xxl", 4762.311)],
)
def test_parameters_of_each_size(size, millions):
    leaves = jax.tree.leaves(t5_load.abstract_params(text_encoder.t5_config(size), "bfloat16"))
    total = sum(leaf.size for leaf in leaves)
    assert round(total / 1e6, 3) == millions
    # Attention, feed-forward and norms of each layer; embedding, position bias, final norm.
    d, ff, layers, heads = text_encoder.SIZES[size]
    layer = 4 * d * heads * 64 + 3 * d * ff + 2 * d
    assert total == layers * layer + 32128 * d + 32 * heads + d


def test_a_program_for_a_mesh_gathers_layers_and_nothing_else(monkeypatch):
    """No all-to-all, and a device holds the whole weights of one layer at a time."""
    from imagen_jax.parallel import sharding

    monkeypatch.setattr(sharding, "FROZEN_BYTES_PER_DEVICE", 1)
    config = T5Config(
        vocab_size=512, d_model=256, d_kv=32, d_ff=1024, num_layers=12, num_heads=8,
        feed_forward="gated-gelu", dtype="bfloat16",
    )  # fmt: skip
    mesh = make_mesh(MeshConfig(fsdp=8, data=1))
    compiled = text_encoder.compile_for(config, mesh, 8, 16)
    assert set(text_encoder.collectives(compiled.as_text())) <= {"all-gather", "all-reduce"}
    weights = sum(
        2 * leaf.size for leaf in jax.tree.leaves(t5_load.abstract_params(config, "bfloat16"))
    )
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes < 1.1 * weights / 8
    # Two copies of one layer of twelve, in float32 because this CPU has no bfloat16 products.
    assert memory.temp_size_in_bytes < 4 * weights / 12


def test_flops_of_a_caption():
    config = text_encoder.t5_config("xxl")
    # 2 x 4.631 B parameters for each token, plus the products of attention.
    dense = 2 * 128 * 4.630710e9
    assert text_encoder.flops_per_caption(config, 128) == pytest.approx(dense, rel=0.015)
