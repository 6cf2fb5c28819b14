"""Attention against its definition, and the masking of text."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.models.attention import ImageAttention, attention


def definition(q, k, v, mask):
    """One head, one example at a time, in float64; masked keys are left out of the arrays."""
    b, queries, heads, _ = q.shape
    out = np.zeros((b, queries, heads, v.shape[-1]))
    for i in range(b):
        for n in range(heads):
            keys, values = k[i, mask[i], n], v[i, mask[i], n]
            logits = q[i, :, n] @ keys.T / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            out[i, :, n] = weights / weights.sum(axis=1, keepdims=True) @ values
    return out


def test_attention_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 3, 4)) for n in (5, 6, 6))
    mask = np.array([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
    result = attention(*map(jnp.float32, (q, k, v)), jnp.array(mask))
    np.testing.assert_allclose(result, definition(q, k, v, mask), atol=1e-6)  # f32 rounding
    everything = attention(*map(jnp.float32, (q, k, v)))
    np.testing.assert_allclose(everything[1], result[1], atol=1e-6)


def test_a_row_without_valid_keys_is_finite():
    x = jnp.ones((1, 2, 1, 4))
    assert bool(jnp.all(jnp.isfinite(attention(x, x, x, jnp.zeros((1, 2), bool)))))


def test_softmax_is_float32_in_bfloat16():
    # 300 keys with equal logits: weights of 1/300 summed in bfloat16 would not give 1 to 1e-2.
    q = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    v = jnp.ones((1, 300, 1, 8), jnp.bfloat16)
    out = attention(q, v, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(out), 1.0, atol=1e-2)


def test_layer_starts_as_the_identity_and_joint_text_matters_after():
    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 8))
    keys, values = jax.random.normal(jax.random.key(1), (2, 1, 3, 2, 4))
    mask = jnp.array([[True, True, False]])
    layer = ImageAttention(8, 4, see_image=True, key_bias=True, dtype=jnp.dtype("float32"))
    params = layer.init(jax.random.key(2), x, (keys, values, mask))["params"]
    np.testing.assert_array_equal(layer.apply({"params": params}, x, (keys, values, mask)), x)
    params["out"]["kernel"] = jnp.eye(8)
    seen = layer.apply({"params": params}, x, (keys, values, mask))
    hidden = layer.apply({"params": params}, x, (keys, values.at[:, 2].add(9.0), mask))
    other = layer.apply({"params": params}, x, (keys, values.at[:, 1].add(9.0), mask))
    np.testing.assert_array_equal(seen, hidden)
    assert float(jnp.abs(seen - other).max()) > 0.1
