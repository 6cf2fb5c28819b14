"""Loading and using the text encoders."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config import TextConfig
from imagen_jax.errors import UserError
from imagen_jax.text.encoder import EMBEDDED, load_encoder


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(TextConfig(max_length=16))


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(EMBEDDED["embedded"], tmp_path / "t5")


def test_the_embedded_encoder_encodes(encoder):
    text = encoder.encode_captions(["a red circle", "", "🦊 שלום </s>", "word " * 2000])
    assert text.tokens.shape == (4, 16, encoder.dim) and text.tokens.dtype == jnp.float32
    assert text.mask.sum(axis=1).tolist()[:2] == [4, 1] and text.mask[3].all()
    assert np.isfinite(text.tokens).all()
    assert not np.asarray(text.tokens)[~np.asarray(text.mask)].any()
    assert len(encoder.identity) == len(encoder.tokenizer_hash) == 64


def test_a_caption_does_not_depend_on_its_neighbours(encoder):
    texts = ["a red circle", "two blue stars on a black background"]
    both = encoder.encode_captions(texts).tokens
    # 1e-5: other batch sizes sum in other orders.
    np.testing.assert_allclose(both[1], encoder.encode_captions(texts[1:]).tokens[0], atol=1e-5)


def test_exchanging_two_objects_changes_every_word(encoder):
    text = encoder.encode_captions(
        ["a red circle left of a blue square", "a blue square left of a red circle"]
    )
    pieces = [encoder.tokenizer.pieces(t) for t in ("red", "circle", "blue", "square")]
    assert all(len(p) == 1 for p in pieces)  # each is one piece, so positions are words
    before, after = np.asarray(text.tokens)
    for first, second in ((1, 6), (2, 7), (6, 1), (7, 2)):
        change = np.linalg.norm(before[first] - after[second]) / np.linalg.norm(before[first])
        assert change > 0.1


def test_a_directory_equals_the_embedded_one(encoder, copy):
    other = load_encoder(TextConfig(encoder=str(copy), max_length=16), dtype="float32")
    assert (other.identity, other.tokenizer_hash) == (encoder.identity, encoder.tokenizer_hash)
    jax.tree.map(np.testing.assert_array_equal, other.params, encoder.params)
    assert load_encoder(TextConfig(encoder=str(copy))).config.dtype == "bfloat16"


@pytest.mark.parametrize("name", ["model.safetensors", "spiece.model", "config.json"])
def test_a_changed_file_is_refused(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[-3] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        load_encoder(TextConfig(encoder=str(copy)))


def test_bad_configurations_are_refused(copy):
    with pytest.raises(UserError, match="no/such"):
        load_encoder(TextConfig(encoder="no/such"))
    with pytest.raises(UserError, match="max_length=0 must be at least 2"):
        load_encoder(TextConfig(max_length=0))
    (copy / "SHA256SUMS").unlink()
    (copy / "spiece.model").unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        load_encoder(TextConfig(encoder=str(copy)))
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match="does not exist"):
        load_encoder(TextConfig(encoder=str(copy)))


@pytest.mark.parity
@pytest.mark.slow
def test_the_embedded_files_are_a_hugging_face_directory(encoder):
    torch = pytest.importorskip("torch")
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(EMBEDDED["embedded"], dtype=torch.float32).eval()
    ids, mask = encoder.tokenizer(["a red circle left of a blue square", "🦊"], 16)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids).long(), torch.from_numpy(mask).long())[0].numpy()
    with jax.default_matmul_precision("highest"):
        tokens = np.asarray(encoder.encode(ids, mask).tokens)
    np.testing.assert_allclose(tokens[mask], expected[mask], atol=2e-5)  # float32 rounding
