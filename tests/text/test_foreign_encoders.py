"""Text encoders from strangers: each malformed directory ends in one message that fits."""

import json
import os
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
import sentencepiece
from encoder_fuzz import run, write_seeds
from safetensors.numpy import load, save

from imagen_jax.config import TextConfig
from imagen_jax.errors import UserError
from imagen_jax.text.encoder import load_encoder


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Directories of a T5 with spiece.model, a T5 with tokenizer.json and a CLIP."""
    return write_seeds(tmp_path_factory.mktemp("seeds"))


@pytest.fixture
def copy(seeds, tmp_path):
    """`copy(kind)` is a directory of its own."""
    return lambda kind: shutil.copytree(seeds[kind], tmp_path / kind)


def refuse(directory, message):
    with pytest.raises(UserError, match=message) as error:
        load_encoder(TextConfig(encoder=str(directory), max_length=8))
    assert str(directory) in str(error.value) and len(str(error.value)) < 600


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", ["t5", "clip"])
@pytest.mark.parametrize("text", ["[1]", "null", '"x"', "3", "", "[" * 100_000, "{"])
def test_a_config_that_is_no_object(copy, kind, text):
    directory = copy(kind)
    (directory / "config.json").write_text(text)
    refuse(directory, "config.json (is not valid JSON|holds .* instead of a JSON object)")


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("t5", "d_model", "16", "d_model '16': it must be a whole number"),
        ("t5", "d_model", 16.0, "d_model 16.0: it must be a whole number"),
        ("t5", "num_layers", 10**9, "num_layers 1000000000: .* 1 to 1000"),
        ("t5", "num_heads", True, "num_heads True"),
        ("t5", "num_heads", 0, "num_heads 0"),
        ("t5", "d_kv", 10**300, "d_kv 1000"),
        ("t5", "layer_norm_epsilon", "x", "layer_norm_epsilon 'x': it must be a number"),
        ("t5", "layer_norm_epsilon", -1e-6, "layer_norm_epsilon -1e-06"),
        ("t5", "feed_forward_proj", ["relu"], "feed_forward_proj .* must be a string"),
        ("t5", "relative_attention_num_buckets", 2, "2 buckets .* at least 4"),
        ("t5", "relative_attention_max_distance", 8, "a distance of 8: .* above a quarter"),
        ("t5", "model_type", ["t5"], "model_type"),
        ("clip", "hidden_size", 30, "hidden_size 30, which num_attention_heads 4 does not"),
        ("clip", "num_attention_heads", 0, "num_attention_heads 0"),
        ("clip", "num_hidden_layers", 1, "the last but one is read"),
        ("clip", "max_position_embeddings", None, "max_position_embeddings None"),
        ("clip", "hidden_act", ["gelu"], "hidden_act .* must be a string"),
        ("clip", "layer_norm_eps", 10**400, "layer_norm_eps 1000"),
    ],
)
def test_values_that_no_encoder_has(copy, kind, key, value, message):
    directory = copy(kind)
    edit(directory / "config.json", **{key: value})
    refuse(directory, message)


def as_type(data, name, dtype):
    """The same tensors in a type that numpy lacks, by its name in safetensors."""
    raw = {key: value.astype(dtype).view(np.uint8) for key, value in load(data).items()}
    data = save(raw)
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    for entry in header.values():
        entry["dtype"] = name
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@pytest.mark.parametrize("kind", ["t5", "clip"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("I8", np.int8),
        ("U8", np.uint8),
        ("BOOL", bool),
    ],
)
def test_quantized_weights_are_not_taken_for_numbers(copy, kind, name, dtype):
    directory = copy(kind)
    path = directory / "model.safetensors"
    path.write_bytes(as_type(path.read_bytes(), name, dtype))
    refuse(directory, f"stored as {name}: quantized weights are not read. Fetch those in float32")


def test_one_matrix_of_integers_with_its_scale(copy):
    directory = copy("t5")
    path = directory / "model.safetensors"
    tensors = load(path.read_bytes())
    key = "encoder.block.0.layer.0.SelfAttention.q.weight"
    tensors |= {key: tensors[key].astype(np.int8), key.replace("weight", "SCB"): tensors[key][0]}
    path.write_bytes(save(tensors))
    refuse(directory, "q.weight' is stored as I8: quantized")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_floats_of_any_width_are_read(copy, dtype):
    directory = copy("t5")
    path = directory / "model.safetensors"
    tensors = {key: value.astype(dtype) for key, value in load(path.read_bytes()).items()}
    path.write_bytes(save(tensors))
    encoder = load_encoder(TextConfig(encoder=str(directory), max_length=8), dtype="float32")
    value = tensors["encoder.final_layer_norm.weight"].astype(np.float32)
    np.testing.assert_array_equal(encoder.params["final_norm"]["scale"], value)


def test_weights_that_are_not_there(copy):
    directory = copy("t5")
    path = directory / "model.safetensors"
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        shutil.copy(path, directory / name)
    path.rename(directory / "pytorch_model.bin")
    refuse(directory, r"model-00001-of-00002.safetensors \(2 such files\), but neither .* fetch ")
    for shard in directory.glob("model-*"):
        shard.unlink()
    refuse(directory, "holds pytorch_model.bin .* imagen_jax.cli.convert_t5 --source=")
    (directory / "pytorch_model.bin").rename(directory / "tf_model.h5")
    refuse(directory, "holds neither model.safetensors nor .* in the safetensors format")
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    refuse(directory, "git lfs pull")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds .* instead of a JSON object"),
        ({}, "has no weight_map"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        ({"weight_map": {"a": 5}}, "weight_map is 5, which is not a plain file name"),
        ({"weight_map": {"a": ["x"]}}, "which is not a plain file name"),
        ({"weight_map": {"a": "../x"}}, "which is not a plain file name"),
        ({"weight_map": {"a": "/dev/zero"}}, "which is not a plain file name"),
        ({"weight_map": {"a": "x.safetensors"}}, "x.safetensors is missing, although"),
    ],
)
def test_an_index_that_leads_elsewhere(copy, content, message):
    directory = copy("t5")
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps(content))
    refuse(directory, message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hello", "has the line 'hello'"),
        (f"{'0' * 64}  ../../etc/passwd", "not a plain file name"),
        (f"{'0' * 64}  /dev/zero", "not a plain file name"),
        (f"{'0' * 64} *config.json", "config.json is missing or does not have the hash"),
    ],
)
def test_checksums_of_other_files(copy, line, message):
    directory = copy("t5")
    (directory / "SHA256SUMS").write_text(f"\n{line}\n")
    refuse(directory, message)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "spiece.model", "SHA256SUMS"])
def test_pipes_devices_and_circles_are_not_read(copy, name):
    directory = copy("t5")
    path = directory / name
    for make, message in (
        (lambda: os.mkfifo(path), "is a pipe"),
        (lambda: path.symlink_to("/dev/zero"), "is a device"),
        (lambda: path.symlink_to(name), "symbolic links"),
        (path.mkdir, "is a directory"),
    ):
        path.unlink(missing_ok=True)
        make()
        refuse(directory, message)


@pytest.mark.parametrize("token", ["padding", "end-of-sequence"])
def test_a_tokenizer_without_a_token_that_is_needed(copy, token):
    directory = copy("t5")
    ids = {"unk_id": 0, "bos_id": -1} | (
        {"pad_id": -1, "eos_id": 1} if token == "padding" else {"pad_id": 1, "eos_id": -1}
    )
    with open(directory / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a red circle", "two dogs"] * 20), model_writer=file,
            vocab_size=40, hard_vocab_limit=False, minloglevel=2, **ids,
        )  # fmt: skip
    refuse(directory, f"spiece.model has no {token} token, which a text encoder needs")
    directory = copy("fast")
    name = "pad_token" if token == "padding" else "eos_token"
    edit(directory / "tokenizer_config.json", **{name: None})
    refuse(directory, f"tokenizer_config.json has no {token} token")
    edit(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    del settings[name]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    refuse(directory, f"has no {token} token")


@pytest.mark.parametrize("text", ["[1]", "{}", "[" * 100_000, "\x00", '{"model": {"type": "X"}}'])
def test_a_tokenizer_that_is_none(copy, text):
    directory = copy("fast")
    (directory / "tokenizer.json").write_text(text)
    refuse(directory, "The tokenizer of .* cannot be read")


def test_tokens_beyond_the_embedding(copy):
    directory = copy("clip")
    vocabulary = json.loads((directory / "vocab.json").read_text())
    edit(directory / "vocab.json", a=10**6)
    assert len(vocabulary) < 10**6
    refuse(directory, "the tokenizer has 1000001 tokens, but the encoder")


def test_mutated_directories_load_or_are_refused(tmp_path):
    result = run(40, 0, tmp_path)
    assert sum(result["outcomes"].values()) == 40
    assert set(result["outcomes"]) == {"loads", "UserError"}
