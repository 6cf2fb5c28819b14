"""The text and the batches that the embedded encoder is pretrained on."""

import itertools
import random

import jax
import numpy as np
import pytest

from imagen_jax.data.builtin.shapes.captions import Caption, ObjectClaim
from imagen_jax.text.encoder import EMBEDDED
from imagen_jax.text.t5 import T5Config
from imagen_jax.text.tokenizer import load_tokenizer
from tools.embedded_encoder.corpus import _ICONS, COLOURS, RELATIONS, SHAPES, Corpus, scene
from tools.embedded_encoder.make import fixed_wording, shapes_captions
from tools.embedded_encoder.pretrain import MASK_ID, PretrainConfig, batches, pretrain
from tools.embedded_encoder.probe import PHRASINGS


def test_draws_are_a_function_of_the_seed_and_varied():
    corpus = Corpus([("a red circle", "1 red circle plain")])
    draws = [[corpus.draw(rng) for _ in range(500)] for rng in (random.Random(3), random.Random(3))]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 250  # two fifths are the one caption given
    assert corpus.captions[0] in draws[0]


def test_emoji_names_are_plain_words():
    names = Corpus().names
    assert len(names) > 3000 and "grinning face" in names and "red heart" in names
    assert not any("_" in name or ":" in name or name != name.lower() for name in names)


def test_icons_say_their_name_and_style_in_the_fixed_wording():
    corpus = Corpus(icons=[("red apple", "noto"), ("owl", "fluent 3d")])
    rng = random.Random(0)
    seen = set()
    for _ in range(2000):
        text, target = corpus.draw(rng)
        style, separator, concept = target.partition(" : ")
        if not separator:
            continue  # of the rest of the corpus
        assert concept in text and style in (*corpus.styles, "any")
        assert style == "any" or style in text
        seen.add((style, concept))
    # All concepts in all styles, also those that no icon has.
    assert len(seen) == 2 * 3


def test_no_phrasing_of_the_probe_is_in_the_corpus():
    assert not set(PHRASINGS) & set(_ICONS)


def test_a_scene_says_what_its_fixed_wording_says():
    rng = random.Random(0)
    kinds = set()
    for _ in range(2000):
        text, target = scene(rng)
        words = target.split()
        assert words[0] in "12345" and words[1] in COLOURS and words[2] in SHAPES
        for word in words:
            if word in COLOURS or word in SHAPES:
                assert word in text
        relation = next((r for r in RELATIONS if f" {r.split()[0]} 1 " in target), None)
        kinds.add(relation)
        # "A left of B" never reads as its opposite, whatever the phrasing.
        if relation == "left of":
            a, b = words[2], words[words.index("left") + 3]
            if f"{a} on the left" in text or f"{a} at the left," in text:
                assert f"{b} on the left" not in text or a == b
    assert kinds == {None, *RELATIONS}


def test_captions_of_shapes_get_the_same_fixed_wording():
    red, blue = ObjectClaim("red", "circle", "small"), ObjectClaim("blue", "star")
    pair = Caption("…", "relation", (red, blue), 2, "left of", "white")
    assert fixed_wording(pair) == "1 red circle small left 1 blue star plain on white"
    many = Caption("…", "count", (blue,), 4)
    assert fixed_wording(many) == "4 blue star plain"
    made = shapes_captions(60, 0)
    assert len(made) == 60 and all(text and target for text, target in made)


def test_batches_mask_and_keep_what_they_say():
    tokenizer = load_tokenizer(EMBEDDED["embedded"])
    settings = PretrainConfig(batch_size=16)
    for batch in itertools.islice(batches(tokenizer, Corpus(), settings), 20):
        changed = batch["ids"] != batch["original"]
        assert (batch["ids"][changed] == MASK_ID).all() and batch["mask"][changed].all()
        assert not changed[np.arange(16) % 4 != 0].any()
        slots = batch["masked_valid"]
        found = np.take_along_axis(changed, batch["masked_at"], axis=1)
        np.testing.assert_array_equal(slots, found)
        assert batch["ids"].shape[1] in (10, 16, 24)


@pytest.mark.slow
def test_pretraining_is_repeatable():
    tokenizer = load_tokenizer(EMBEDDED["embedded"])
    config = T5Config(
        vocab_size=tokenizer.vocab_size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        feed_forward="gated-gelu",
    )  # fmt: skip
    settings = PretrainConfig(num_steps=21, batch_size=8, length=10)
    lines = []
    runs = [pretrain(config, tokenizer, Corpus(), settings, lines.append) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *runs)
    assert len(lines) == 2 and lines[0].startswith("step 21/21: ")
