"""Captions that are wrong in one respect, and what a denoiser's error says of them."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.caption_edits import EDITS, LOGSNRS, edited_captions, rises
from benchmarks.denoising_error import Denoiser, held_out_scenes
from benchmarks.text_strength import table, write_encoder
from imagen_jax.config import TextConfig
from imagen_jax.data.builtin.shapes.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES
from imagen_jax.text.encoder import load_encoder

SCENES = 40


def words(text):
    return Counter("a" if word in ("a", "an") else word for word in text.replace(",", "").split())


@pytest.mark.parametrize(
    "name, kind, vocabulary",
    [
        ("background", "relation", BACKGROUNDS),
        ("colour", "single", COLOURS),
        ("shape", "single", SHAPES),
        ("relation", "relation", [*" ".join(RELATIONS).split(), "over", "under"]),
    ],
)
def test_an_edit_changes_one_word_of_its_kind(name, kind, vocabulary):
    scenes, texts, _ = held_out_scenes(SCENES, 8, kind=kind)
    changed = 0
    for before, after in zip(texts, edited_captions(scenes, EDITS[name][1]), strict=True):
        gone, come = words(before) - words(after), words(after) - words(before)
        assert gone.total() == come.total() <= 1
        assert all(word in vocabulary for word in (gone | come)), (before, after)
        changed += gone.total()
    # A background is named in three captions of ten.
    assert changed == SCENES if name != "background" else 0 < changed < SCENES


def test_order_keeps_the_words_and_count_changes_the_number():
    scenes, texts, _ = held_out_scenes(SCENES, 8, kind="relation")
    for before, after in zip(texts, edited_captions(scenes, EDITS["order"][1]), strict=True):
        assert before != after and words(before) == words(after)
    scenes, texts, _ = held_out_scenes(SCENES, 8, kind="count")
    for scene, before, after in zip(
        scenes, texts, edited_captions(scenes, EDITS["count"][1]), strict=True
    ):
        assert before != after and len(EDITS["count"][1](scene).objects) != len(scene.objects)


def test_the_rise_is_where_the_denoiser_reads():
    """One that paints the named background perfectly and reads nothing else."""
    names = list(BACKGROUNDS)

    def encode(texts):
        colours = [next((BACKGROUNDS[n] for n in names if n in text), None) for text in texts]
        return jnp.asarray([[c / 127.5 - 1 for c in colour or (0, 0, 0)] for colour in colours])

    def x_hat(x, eps, text, level):
        return jnp.broadcast_to(text[:, None, None] + 0.01, x.shape)

    found = rises(Denoiser(resolution=16, encode=encode, x_hat=x_hat), 12)
    assert found["background"].mean > 1000 and set(found["background"].by_level) == set(LOGSNRS)
    for name in ("colour", "shape", "count", "relation", "order"):
        assert found[name].mean == found[name].error == 0


@pytest.mark.slow
def test_a_bag_of_words_is_blind_to_order_and_the_embedded_encoder_is_not(tmp_path):
    captions = ["a red circle left of a blue square", "a blue square left of a red circle"]

    def rows(strength):
        directory = str(write_encoder(strength, tmp_path))
        encoder = load_encoder(TextConfig(encoder=directory, max_length=16), dtype="float32")
        tokens = np.asarray(encoder.encode_captions(captions).tokens)
        # In an order of their own: what is left is which tokens there are.
        return [one[np.lexsort(one.T)] for one in tokens]

    np.testing.assert_array_equal(*rows("words"))
    for strength in ("random", "embedded"):
        first, second = rows(strength)
        assert np.abs(first - second).max() > 0.1


def test_the_table_has_a_column_a_run():
    share = {"hits": 3, "total": 10}
    run = {
        "loss": {"all": 0.5, "-6_to_-2": 0.25},
        "rises": {name: {"mean": 12.34, "error": 0.5} for name in EDITS},
        "accuracy": {"all": {"accepted": share, "parts": {"colour": share}}},
    }
    lines = table({"words, seed 0": run, "embedded, seed 0": run}).splitlines()
    assert lines[0] == "| | words, seed 0 | embedded, seed 0 |"
    assert "| at log-SNR -6 to -2 | 0.2500 | 0.2500 |" in lines
    assert "| error with another order, % | +12.3 (0.5) | +12.3 (0.5) |" in lines
    assert "| colour as asked for, of 10 | 3 | 3 |" in lines
    assert {line.count("|") for line in lines} == {4}
