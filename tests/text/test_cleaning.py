"""Caption cleaning: off by default, IF's where asked for, compared with diffusers."""

import random
import sys

import numpy as np
import pytest

from imagen_jax.config import TextConfig, from_json_dict, to_json_dict
from imagen_jax.errors import UserError
from imagen_jax.text import cleaning
from imagen_jax.text.encoder import load_encoder


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A Red CIRCLE", "a red circle"),
        ("see https://example.com now", "see now"),
        ("<b>bold</b> &amp; plain", "bold plain"),
        ("<person> in a park", "person in a park"),
        ("cat by @photographer 2019", "cat by 2019"),
        ("IMG_2041.jpg", ""),
        ("blue shoe free shipping worldwide", "blue shoe worldwide"),
        ("this-is-my-cute-cat", "this is my cute cat"),
        ("well-known cat", "well-known cat"),
        ("poster 30x40 jc6640 #12 1234567", "poster"),
        ("wall art 红色 round", "wall art round"),
        ("the “quoted” — dash", 'the "quoted" - dash'),
        ("***SALE***", "sale"),
        ("100%25 cotton", "100% cotton"),
        ("", ""),
    ],
)
def test_the_if_cleaner(caption, cleaned):
    assert cleaning.clean(caption, "if") == cleaned
    assert cleaning.clean(caption, "none") == caption


FRAGMENTS = (
    "A red circle", "https://a.com/x", "www.shop.co.uk", "foo.bar@mail.net", "<b>", "</b>", "<br/>",
    "&amp;", "&quot;", "&lt;i&gt;", "&amp;amp;", "@name", "红色", "㌔", "㐀x", "—", "--", "_",
    "‘q’", "“q”", "«x»", "192.168.1.10", "4:30 ", "\\n", "\n", "#12", "#1234", "#123456", "1234567",
    "IMG_20.jpg", "a.mp4", "...", ". . .", "***", "(c)", "®", "a-b-c-d-e", "a_b_c_d_e", "jc6640",
    "jc6640vc", "6640vc231", "j2d1a2a", "free shipping", "worldwide free shipping", "download free",
    "click for more", "png images", "page 12", "30x40", "3.5×4", "x : y", "a,b", "a/b", "'", '"',
    ":", ";", "+", "%20", "%C3%A9", "é", "Ã©", "ﬁ", "🦊", "<person>", "\u200b", "\t", "~", "½", "İ",
)  # fmt: skip


@pytest.mark.parity
@pytest.mark.slow
def test_parity_with_diffusers():
    pytest.importorskip("diffusers")
    from diffusers import IFPipeline

    pipeline = IFPipeline.__new__(IFPipeline)
    rng = random.Random(0)
    changed = 0
    for _ in range(4000):
        glue = rng.choice(("", " ", " ", "  "))
        caption = glue.join(rng.choice(FRAGMENTS) for _ in range(rng.randint(1, 9)))
        (expected,) = pipeline._text_preprocessing(caption, clean_caption=True)
        assert cleaning.clean(caption, "if") == expected, repr(caption)
        changed += expected != caption.lower().strip()
    assert changed > 3000


def test_the_encoder_applies_it_and_its_name_is_part_of_the_config():
    plain = load_encoder(TextConfig(max_length=8))
    cleaned = load_encoder(TextConfig(max_length=8, cleaning="if"))
    tokens = cleaned.encode_captions(["A Red <b>Circle</b>!"]).tokens
    np.testing.assert_array_equal(tokens, plain.encode_captions(["a red circle!"]).tokens)
    assert not np.array_equal(tokens, plain.encode_captions(["A Red <b>Circle</b>!"]).tokens)

    stage = {"stages": {"base": {}}}
    assert from_json_dict(stage).text.cleaning == "none"
    config = from_json_dict(stage | {"text": {"cleaning": "if"}})
    assert to_json_dict(config)["text"]["cleaning"] == "if"
    with pytest.raises(UserError, match=r"config.text.cleaning='iff' must be one of none, if"):
        from_json_dict(stage | {"text": {"cleaning": "iff"}})
    assert (cleaning.version("none"), cleaning.version("if")) == ("none", "if-1")


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    cleaning._libraries.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'imagen-jax\[cleaning\]'"):
        cleaning.clean("x", "if")
    cleaning._libraries.cache_clear()
