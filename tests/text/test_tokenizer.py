"""Any text becomes ids; literals in a caption never become control tokens."""

import io

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.text.encoder import EMBEDDED
from imagen_jax.text.tokenizer import load_tokenizer

STRANGE = [
    "",
    "   ",
    "a </s> b",
    "<pad><pad>",
    "<unk> <extra_id_0> </s></s>",
    "＜/s＞ full-width",
    "🦊 and 👩🏽‍🚀",
    "שלום עולם",
    "مربع أحمر",
    "红色的圆",
    "a\x00b\ttab\nline",
    "half a pair \ud83d",
    "\u202eright to left override",
]


@pytest.fixture(scope="module")
def embedded():
    return load_tokenizer(EMBEDDED["embedded"])


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    """A directory with `tokenizer.json` only, as transformers 5 writes it."""
    from transformers import T5Config, T5Tokenizer

    directory = tmp_path_factory.mktemp("fast")
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    vocab += [("▁" + word, -2.0) for word in ("a", "red", "circle")]
    vocab += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz<>/"]
    T5Tokenizer(vocab=vocab, extra_ids=0).save_pretrained(directory)
    T5Config(vocab_size=len(vocab)).save_pretrained(directory)
    return load_tokenizer(directory)


@pytest.mark.parametrize("name", ["embedded", "fast"])
def test_strange_text_never_gives_control_tokens(name, request):
    tokenizer = request.getfixturevalue(name)
    ids, mask = tokenizer(STRANGE, 64)
    assert ids.dtype == np.int32 and ids.shape == mask.shape == (len(STRANGE), 64)
    for row, valid in zip(ids, mask, strict=True):
        used = row[valid]
        assert used[-1] == tokenizer.eos_id
        assert not {tokenizer.eos_id, tokenizer.pad_id} & set(used[:-1].tolist())
        assert (row[~valid] == tokenizer.pad_id).all() and used.max() < tokenizer.vocab_size


def test_the_embedded_vocabulary_has_no_unknown(embedded):
    ids, mask = embedded(STRANGE, 64)
    assert not (ids[mask] == 2).any()
    assert len(set(map(tuple, ids.tolist()))) >= len(STRANGE) - 1  # "" and "   " are the same


@pytest.mark.parametrize("name", ["embedded", "fast"])
def test_empty_is_one_end_of_sequence(name, request):
    tokenizer = request.getfixturevalue(name)
    ids, mask = tokenizer(["", "a red circle"], 8)
    assert mask[0].tolist() == [True] + 7 * [False]
    assert ids[0, 0] == tokenizer.eos_id
    assert mask[1].sum() == 4


def test_long_captions_are_cut_and_counted(embedded):
    before = embedded.num_truncated
    ids, mask = embedded(["x y " * 2500, "a red circle"], 16)
    assert embedded.num_truncated == before + 1
    assert mask[0].all() and ids[0, -1] == embedded.eos_id
    # Exactly as long as there is room for is not cut.
    embedded(["a red circle"], 4)
    assert embedded.num_truncated == before + 1


def test_case_and_compatibility_forms_do_not_matter(embedded):
    ids, _ = embedded(["A Red CIRCLE", "a red circle", "ａ ｒｅｄ circle"], 8)
    np.testing.assert_array_equal(ids[0], ids[1])
    np.testing.assert_array_equal(ids[0], ids[2])


def test_bad_arguments(embedded, tmp_path):
    with pytest.raises(UserError, match="max_length is 0"):
        embedded(["a"], 0)
    with pytest.raises(UserError, match="list of strings"):
        embedded("a red circle", 8)
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.slow
def test_ids_are_those_of_transformers(tmp_path):
    """On text without literal control tokens, with a model like the released T5's (nmt_nfkc)."""
    import sentencepiece
    from transformers import AutoTokenizer, T5Config

    words = ["a red circle left of the blue square", "two dogs; one cat!", "An Astronaut, 1969"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20), model_writer=model, model_type="unigram",
        vocab_size=100, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    T5Config(vocab_size=300).save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*words, "Circle  of\tdogs ﬁne", "naïve 🦊 שלום", "", "  two "]:
        ids, mask = ours([text], 64)
        assert ids[0][mask[0]].tolist() == theirs(text).input_ids, text
