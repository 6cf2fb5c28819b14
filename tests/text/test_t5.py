"""The T5 encoder against Hugging Face's torch T5EncoderModel on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config import TextConfig
from imagen_jax.errors import UserError
from imagen_jax.text import hf_files, t5_load
from imagen_jax.text.encoder import encode
from imagen_jax.text.t5 import T5Config, T5Encoder, relative_buckets

TINY = T5Config(
    vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3, feed_forward="gated-gelu"
)


def random_params(config, key=0):
    shapes = jax.eval_shape(
        T5Encoder(config).init,
        jax.random.key(key),
        jnp.zeros((1, 4), jnp.int32),
        jnp.ones((1, 4), bool),
    )["params"]
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    values = [0.5 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, values)


def random_batch(config, lengths, padded, seed=0):
    ids = np.random.default_rng(seed).integers(3, config.vocab_size, (len(lengths), padded))
    mask = np.arange(padded)[None, :] < np.asarray(lengths)[:, None]
    return np.where(mask, ids, 0).astype(np.int32), mask


def bucket_by_definition(offset, num_buckets, max_distance):
    """Raffel et al.'s rule for one offset, key minus query."""
    side = num_buckets // 2
    start = side if offset > 0 else 0
    distance, exact = abs(offset), side // 2
    if distance < exact:
        return start + distance
    edge = exact
    for k in range(side - exact):  # bucket exact + k begins at exact * (max / exact)^(k / n)
        if distance >= exact * (max_distance / exact) ** (k / (side - exact)) - 1e-9:
            edge = exact + k
    return start + edge


def test_relative_buckets_follow_their_definition():
    table = relative_buckets(200, 32, 128)
    for query in (0, 57, 199):
        expected = [bucket_by_definition(key - query, 32, 128) for key in range(200)]
        np.testing.assert_array_equal(table[query], expected)
    assert set(np.unique(table)) == set(range(32)) - {16}  # no key is 0 tokens after its query


def test_padding_has_no_influence_and_comes_out_as_zero():
    params = random_params(TINY)
    ids, mask = random_batch(TINY, [5, 9], 12)
    reference = encode(params, TINY, ids, mask).tokens
    other = np.where(mask, ids, 7).astype(np.int32)
    np.testing.assert_array_equal(encode(params, TINY, other, mask).tokens, reference)
    assert not np.asarray(reference)[~mask].any()
    # 2e-5: sums in another order, values of order 1.
    alone = encode(params, TINY, ids[:1, :5], mask[:1, :5]).tokens
    np.testing.assert_allclose(alone[0], reference[0, :5], atol=2e-5)


def test_word_order_changes_the_states():
    params = random_params(TINY)
    mask = np.ones((2, 4), bool)
    tokens = encode(params, TINY, np.array([[5, 6, 7, 8], [7, 6, 5, 8]], np.int32), mask).tokens
    assert float(jnp.abs(tokens[0, 3] - tokens[1, 3]).max()) > 0.05


def test_bfloat16_is_close_to_float32():
    params = random_params(TINY)
    ids, mask = random_batch(TINY, [8, 3], 8)
    exact = encode(params, TINY, ids, mask).tokens
    half = encode(params, T5Config(**{**vars(TINY), "dtype": "bfloat16"}), ids, mask).tokens
    assert half.dtype == jnp.float32
    # bfloat16 has 8 bits: 0.4 % a product, a few of them in a row.
    assert float(jnp.linalg.norm(half - exact) / jnp.linalg.norm(exact)) < 0.03


def test_an_id_outside_the_vocabulary_gives_nan():
    ids, mask = random_batch(TINY, [4], 4)
    ids[0, 1] = TINY.vocab_size
    assert np.isnan(encode(random_params(TINY), TINY, ids, mask).tokens).any()


def test_saved_parameters_come_back(tmp_path):
    params = random_params(TINY)
    t5_load.save_params(tmp_path, TINY, params)
    assert t5_load.read_config(tmp_path) == TINY
    loaded = t5_load.load_params(tmp_path, TINY)
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(np.asarray, params))
    half = t5_load.load_params(tmp_path, TINY, "bfloat16")
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half))


def test_identity_depends_on_weights_and_architecture_only(tmp_path):
    params = random_params(TINY)
    t5_load.save_params(tmp_path, TINY, params)
    first = hf_files.identity(tmp_path, TINY)
    bf16 = T5Config(**{**vars(TINY), "dtype": "bfloat16"})
    assert hf_files.identity(tmp_path, bf16) == first
    assert hf_files.identity(tmp_path, T5Config(**{**vars(TINY), "eps": 1e-5})) != first
    params["relative_bias"] = params["relative_bias"].at[0, 0].add(1.0)
    t5_load.save_params(tmp_path, TINY, params)
    assert hf_files.identity(tmp_path, TINY) != first


def _rewrite(directory, change):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_other_embedding_name_and_decoder_keys_are_read(tmp_path):
    params = random_params(TINY)
    t5_load.save_params(tmp_path, TINY, params)

    def change(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
        tensors["decoder.final_layer_norm.weight"] = np.zeros(3, np.float32)
        tensors["lm_head.weight"] = np.zeros(3, np.float32)

    _rewrite(tmp_path, change)
    loaded = t5_load.load_params(tmp_path, TINY)
    np.testing.assert_array_equal(loaded["embedding"], params["embedding"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.final_layer_norm.weight"), "final_layer_norm.*missing"),
        (lambda t: t.update({"shared.weight": t["shared.weight"][:-1]}), r"shape \(49, 16\)"),
        (
            lambda t: t.update({"encoder.block.2.layer.0.layer_norm.weight": np.ones(16)}),
            "2 layers",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, message):
    t5_load.save_params(tmp_path, TINY, random_params(TINY))
    _rewrite(tmp_path, change)
    with pytest.raises(UserError, match=message):
        t5_load.load_params(tmp_path, TINY)


def test_damaged_or_missing_files_are_refused(tmp_path):
    t5_load.save_params(tmp_path, TINY, random_params(TINY))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        t5_load.load_params(tmp_path, TINY)
    path.unlink()
    with pytest.raises(UserError, match="holds neither"):
        t5_load.load_params(tmp_path, TINY)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        t5_load.load_params(tmp_path, TINY)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="'bert'"):
        t5_load.read_config(tmp_path)


def test_text_config_default_is_the_embedded_encoder():
    assert TextConfig().encoder == "embedded"


PARITY = {
    "gated-gelu": dict(d_model=64, d_kv=16, d_ff=96, num_layers=3, num_heads=4),
    "relu": dict(d_model=32, d_kv=24, d_ff=80, num_layers=2, num_heads=3, feed_forward="relu"),
    "other buckets": dict(
        d_model=48, d_kv=8, d_ff=64, num_layers=2, num_heads=5, num_buckets=24, max_distance=70,
        eps=1e-3,
    ),
}  # fmt: skip


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", list(PARITY))
def test_parity_with_torch(tmp_path, name, sharded):
    torch = pytest.importorskip("torch")
    from transformers import T5Config as TorchConfig
    from transformers import T5EncoderModel

    config = T5Config(**{"vocab_size": 99, "feed_forward": "gated-gelu", **PARITY[name]})
    torch.manual_seed(0)
    model = T5EncoderModel(
        TorchConfig(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.num_buckets,
            relative_attention_max_distance=config.max_distance,
            layer_norm_epsilon=config.eps,
            feed_forward_proj=config.feed_forward,
        )
    ).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            # Norm weights away from 1 and a position bias that matters.
            if "layer_norm" in key or "relative_attention_bias" in key:
                value.copy_(1 + 0.5 * torch.randn_like(value))
    model.save_pretrained(tmp_path, max_shard_size="40KB" if sharded else "5GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    assert t5_load.read_config(tmp_path) == config

    # 300 tokens: far beyond the last bucket.
    ids, mask = random_batch(config, [300, 1, 17, 131], 300)
    with torch.no_grad():
        expected = model(
            input_ids=torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long()
        ).last_hidden_state.numpy()
    with jax.default_matmul_precision("highest"):
        tokens = np.asarray(encode(t5_load.load_params(tmp_path, config), config, ids, mask).tokens)
    # float32 sums of some 100 terms of order 1 in another order.
    np.testing.assert_allclose(tokens[mask], expected[mask], atol=1e-5, rtol=1e-5)
