"""CLIP's text tower against Hugging Face's torch CLIPTextModel on random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.config import MeshConfig, TextConfig
from imagen_jax.errors import UserError
from imagen_jax.parallel import sharding
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.text import clip
from imagen_jax.text.clip import ClipConfig, ClipEncoder
from imagen_jax.text.encoder import encode, identify, load_encoder
from imagen_jax.text.tokenizer import load_tokenizer

WORDS = ("a", "red", "blue", "circle", "square")


def write_tokenizer(directory):
    """CLIP's kind of tokenizer with a few whole words. Returns the size of its vocabulary."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges, tokens = [], letters + [letter + "</w>" for letter in letters]
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = [parts[0] + parts[1]]
            tokens.append(parts[0])
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    (directory / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    merges = list(dict.fromkeys(merges))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return len(tokens)


def write_clip(directory, prefix="text_model.", whole=False, seed=0, **changes):
    """A tiny CLIP with random weights; `whole` with an image tower beside it."""
    size = write_tokenizer(directory)
    values = {
        "vocab_size": size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 20, "hidden_act": "quick_gelu",
        "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1,
    } | changes  # fmt: skip
    outer = {"model_type": "clip", "text_config": values, "vision_config": {}}
    text = {"model_type": "clip_text_model"} | values
    (directory / "config.json").write_text(json.dumps(outer if whole else text))
    config = clip.read_config({"model_type": "clip_text_model"} | values, directory, "float32")
    rng = np.random.default_rng(seed)
    tensors = {}
    deeper = ClipConfig(**{**vars(config), "num_layers": config.num_layers + 1})
    for leaf in clip._leaves(deeper, prefix):
        for key in leaf.keys:
            noise = rng.standard_normal(leaf.file_shape, np.float32)
            is_norm = "layer_norm" in key and key.endswith("weight")
            tensors[key] = 1 + 0.3 * noise if is_norm else 0.2 * noise
    for kind in ("weight", "bias"):
        tensors[f"{prefix}final_layer_norm.{kind}"] = rng.standard_normal(32, np.float32)
    if whole:
        tensors["vision_model.embeddings.class_embedding"] = np.zeros(4, np.float32)
        tensors["logit_scale"] = np.zeros((), np.float32)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return config


def test_one_line_switches_encoders(tmp_path):
    """The kind is read from the directory; the rest of the program sees a text encoder."""
    write_clip(tmp_path)
    encoder = load_encoder(TextConfig(encoder=str(tmp_path), max_length=10), dtype="float32")
    text = encoder.encode_captions(["a red circle", "", "blue square " * 30])
    assert text.tokens.shape == (3, 10, 32) and text.tokens.dtype == jnp.float32
    assert text.mask.sum(axis=1).tolist() == [5, 2, 10]  # with the start and the end
    assert encoder.dim == 32 and encoder.tokenizer.num_truncated == 1
    assert not np.asarray(text.tokens)[~np.asarray(text.mask)].any()
    assert identify(TextConfig(encoder=str(tmp_path), max_length=10)) == (
        encoder.identity, encoder.tokenizer_hash,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"max_length is 21.*at most 20 tokens"):
        load_encoder(TextConfig(encoder=str(tmp_path), max_length=21))
    default = load_encoder(TextConfig(encoder=str(tmp_path), max_length=10))
    assert default.config.dtype == "bfloat16"
    exact = encoder.encode_captions(["a red circle"]).tokens
    near = default.encode_captions(["a red circle"]).tokens
    # bfloat16 has 8 bits: 0.4 % a product, a few of them in a row.
    assert float(jnp.linalg.norm(near - exact) / jnp.linalg.norm(exact)) < 0.03


def test_attention_is_causal_and_padding_has_no_influence(tmp_path):
    config = write_clip(tmp_path)
    params = clip.load_params(tmp_path, config)
    ids = np.arange(5, 17, dtype=np.int32).reshape(1, 12)
    mask = np.arange(12)[None] < 9
    reference = np.asarray(encode(params, config, ids, mask).tokens)
    other = np.where(mask, ids, 3).astype(np.int32)
    np.testing.assert_array_equal(encode(params, config, other, mask).tokens, reference)
    other[0, 6] = 99
    changed = np.abs(np.asarray(encode(params, config, other, mask).tokens) - reference).max(-1)[0]
    assert (changed[:6] == 0).all() and (changed[6:9] > 1e-3).all()


def test_parameters_are_those_of_the_network_and_shard(tmp_path, monkeypatch):
    config = write_clip(tmp_path, whole=True)
    shapes = jax.eval_shape(
        ClipEncoder(config).init, jax.random.key(0), jnp.zeros((1, 4), int), jnp.ones((1, 4), bool)
    )["params"]
    params = clip.load_params(tmp_path, config)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    monkeypatch.setattr(sharding, "FROZEN_BYTES_PER_DEVICE", 1)
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)
    text = TextConfig(encoder=str(tmp_path), max_length=8)
    spread = load_encoder(text, dtype="float32", mesh=make_mesh(MeshConfig(fsdp=4)))
    jax.tree.map(np.testing.assert_array_equal, spread.params, params)
    assert not spread.params["blocks"]["up"]["kernel"].sharding.is_fully_replicated


def test_directories_that_do_not_fit_are_refused(tmp_path):
    config = write_clip(tmp_path)
    with pytest.raises(UserError, match=r"layers\.3\..*does not belong to a CLIP text tower of 3"):
        tensors = load_file(tmp_path / "model.safetensors")
        extra = {"text_model.encoder.layers.3.mlp.fc1.bias": np.zeros(48, np.float32)}
        save_file(tensors | extra, tmp_path / "model.safetensors")
        clip.load_params(tmp_path, config)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        load_encoder(TextConfig(encoder=str(tmp_path), max_length=8))
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"hidden_act": "swish"}))
    with pytest.raises(UserError, match="hidden_act 'swish'"):
        load_encoder(TextConfig(encoder=str(tmp_path), max_length=8))


def test_the_tokenizer_gives_the_ids_of_transformers_and_no_control_tokens(tmp_path):
    from transformers import CLIPTokenizer

    write_tokenizer(tmp_path)
    theirs, ours = CLIPTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    captions = ["a red circle", "A  Blue SQUARE!", "", "xyz é 🦊"]
    ids, mask = ours(captions, 40)
    for row, caption in enumerate(captions):
        assert ids[row, mask[row]].tolist() == theirs.encode(caption)
    ids, mask = ours(["red <|endoftext|> blue <|startoftext|>"], 40)
    valid = ids[0, mask[0]].tolist()
    assert valid.count(theirs.eos_token_id) == 1 and valid.count(theirs.bos_token_id) == 1


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("whole", [False, True])
def test_parity_with_torch(tmp_path, activation, whole):
    torch = pytest.importorskip("torch")
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    (tmp_path / "torch").mkdir()
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=30, hidden_act=activation,
            eos_token_id=98, bos_token_id=97, pad_token_id=98,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for key, value in model.named_parameters():
            # Large enough to matter; norms away from 1.
            noise = torch.randn_like(value)
            is_norm = "norm" in key and key.endswith("weight")
            value.copy_(1 + 0.5 * noise if is_norm else 0.15 * noise)
    model.save_pretrained(tmp_path / "torch")
    values = json.loads((tmp_path / "torch" / "config.json").read_text())
    if whole:
        values = {"model_type": "clip", "text_config": values}
        tensors = load_file(tmp_path / "torch" / "model.safetensors")
        tensors = {f"text_model.{key.removeprefix('text_model.')}": t for key, t in tensors.items()}
        save_file(tensors, tmp_path / "torch" / "model.safetensors")
    config = clip.read_config(values, tmp_path, "float32")
    assert config.num_layers == 4 and config.activation == activation

    lengths = np.array([30, 3, 17])
    ids = np.random.default_rng(0).integers(0, 90, (3, 30)).astype(np.int32)
    mask = np.arange(30)[None] < lengths[:, None]
    with torch.no_grad():
        expected = model(
            input_ids=torch.from_numpy(ids).long(),
            attention_mask=torch.from_numpy(mask).long(),
            output_hidden_states=True,
        ).hidden_states[-2].numpy()  # fmt: skip
    with jax.default_matmul_precision("highest"):
        params = clip.load_params(tmp_path / "torch", config)
        tokens = np.asarray(encode(params, config, ids, mask).tokens)
    # float32 sums of some 100 terms in another order; the states are of order 10.
    np.testing.assert_allclose(tokens[mask], expected[mask], atol=1e-4, rtol=1e-5)
