"""Weights of parts of prompts: the syntax, the tokens they fall on, and their embeddings."""

import dataclasses

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.sampling.encoded_prompts import EncodedPrompts
from imagen_jax.text.prompt_weights import apply_weights, parse_weights, token_weights


@pytest.mark.parametrize(
    ("prompt", "text", "weights"),
    [
        ("", "", []),
        ("ab", "ab", [1, 1]),
        ("(a:1.5)b", "ab", [1.5, 1]),
        ("(a(b: 3 ):0.5)c", "abc", [0.5, 1.5, 1]),
        (r"\(a\)\\", "(a)\\", [1, 1, 1, 1]),
        ("(3:2:0)", "3:2", [0, 0, 0]),
        (r"(a\:1:2)", "a:1", [2, 2, 2]),
        ("(:2)a:5", "a:5", [1, 1, 1]),
        (r"C:\x", r"C:\x", [1, 1, 1, 1]),
    ],
)
def test_syntax(prompt, text, weights):
    parsed, found = parse_weights(prompt)
    assert parsed == text
    np.testing.assert_array_equal(found, np.float32(weights))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a (red:1.2", "opening bracket has no closing one"),
        ("red:1.2)", "closing bracket has no opening one"),
        ("a (red) one", "a part has no weight"),
        ("(red:)", "the weight '' is not a number"),
        ("(red:big)", "the weight 'big' is not a number"),
        ("(red:nan)", "the weight nan must be finite"),
        ("(red:-1)", "the weight -1 must be finite and not negative"),
    ],
)
def test_what_cannot_be_read(prompt, message):
    with pytest.raises(UserError, match=message) as error:
        parse_weights(prompt)
    assert repr(prompt) in str(error.value)


def test_tokens_of_the_embedded_encoder(encoder):
    text, weights = parse_weights("a (red circle:1.5) on (bl:3)ue 🦊")
    ids, _ = encoder.prepare([text])
    found = encoder.token_weights([text], [weights])[0]
    pieces = [len(text[start:end].strip()) for start, end in encoder.tokenizer.spans(text)]
    assert len(pieces) == len(encoder.tokenizer.pieces(text)) and found.shape == ids[0].shape
    # a, red, circle, on, blue (half of it has the weight 3), then the end and padding.
    np.testing.assert_allclose(found[:6], [1, 1.5, 1.5, 1, 2, 1])
    assert (found[6:] == 1).all()


def test_prompts_that_are_cut_and_parts_of_characters():
    weights = np.float32([2, np.nan, 4, 4])
    spans = [(0, 1), (1, 3), (3, 3), (3, 4), (3, 4)]
    np.testing.assert_array_equal(token_weights(spans, weights, 1, 5), [1, 2, 4, 4, 1])
    np.testing.assert_array_equal(token_weights([(1, 2)], weights, 0, 2), [1, 1])


def test_the_formula():
    rng = np.random.default_rng(0)
    tokens, empty = rng.standard_normal((2, 3, 4)), rng.standard_normal(4)
    weights = np.array([[1.0, 0.0, 1.4], [2.0, 1.0, 0.5]])
    result = apply_weights(tokens, weights, empty)
    for row, token in np.ndindex(2, 3):
        w = weights[row, token]
        expected = w * tokens[row, token] + (1 - w) * empty
        np.testing.assert_allclose(result[row, token], expected, rtol=1e-12)
    np.testing.assert_array_equal(result[0, 0], tokens[0, 0])
    np.testing.assert_array_equal(result[0, 1], empty)


def test_conditions_of_weighted_prompts(encoder):
    plain = EncodedPrompts(encoder, ["a red circle"] * 40)(np.array([0, 39]))
    prompts = ["a (red:1) circle"] * 39 + ["a (red:1.5) circle"]
    same, changed = (
        EncodedPrompts(encoder, prompts, weighted=True)(np.array([i])) for i in (0, 39)
    )
    np.testing.assert_array_equal(same.tokens[0], plain.tokens[0])
    np.testing.assert_array_equal(changed.mask[0], plain.mask[1])
    empty = encoder.encode_captions([""]).tokens[0, 0]
    moved = np.abs(changed.tokens[0] - plain.tokens[1]).max(axis=-1) > 0
    assert moved.nonzero()[0].tolist() == [1]
    expected = empty + 1.5 * (plain.tokens[1, 1] - empty)
    np.testing.assert_allclose(changed.tokens[0, 1], expected, rtol=1e-5, atol=1e-6)


def test_encoders_that_cannot(encoder):
    blind = dataclasses.replace(encoder.tokenizer, spans=None)
    with pytest.raises(UserError, match="need a tokenizer that tells"):
        EncodedPrompts(dataclasses.replace(encoder, tokenizer=blind), ["a"], weighted=True)
    with pytest.raises(UserError, match=r"text\.cleaning='if'"):
        EncodedPrompts(dataclasses.replace(encoder, cleaning="if"), ["a"], weighted=True)
