import pytest

from imagen_jax.data.builtin.shapes import Caption, ObjectClaim
from imagen_jax.errors import UserError
from imagen_jax.evaluation.caption_accuracy import Score
from imagen_jax.evaluation.caption_check import check, holds
from imagen_jax.evaluation.scene_reader import SeenObject, SeenScene


def seen_object(words: str, x: float = 0.5, y: float = 0.5) -> SeenObject:
    size, colour, shape = words.split()
    return SeenObject(shape, colour, size, x, y, (x - 0.1, y - 0.1, x + 0.1, y + 0.1))


def failed(objects, said: Caption, background: str = "white") -> set[str]:
    score = Score(check(SeenScene(background, tuple(objects)), said), seen="")
    assert score.accepted == (not score.failed)
    return set(score.failed)


RED_CIRCLE = ObjectClaim("red", "circle")
BLUE_STAR = ObjectClaim("blue", "star")
SINGLE = Caption("a red circle", "single", (RED_CIRCLE,), 1)
SMALL = Caption("a small red circle", "single", (ObjectClaim("red", "circle", "small"),), 1)
ON_NAVY = Caption("a red circle on navy", "single", (RED_CIRCLE,), 1, background="navy")
THREE = Caption("three red circles", "count", (RED_CIRCLE,), 3)
LEFT = Caption("", "relation", (RED_CIRCLE, BLUE_STAR), 2, relation="left of")
CIRCLE, STAR = "large red circle", "large blue star"


@pytest.mark.parametrize(
    ("words", "said", "expected"),
    [
        (["large red circle"], SINGLE, set()),
        (["large pink circle"], SINGLE, {"colour"}),
        (["large red unknown"], SINGLE, {"shape"}),
        ([], SINGLE, {"count", "colour", "shape"}),
        (["small red circle"] * 2, SINGLE, {"count"}),
        (["small red circle"], SMALL, set()),
        (["medium red circle"], SMALL, {"size"}),
        (["small red circle"] * 3, THREE, set()),
        (["small red circle", "medium red circle", "large red circle"], THREE, set()),
        (["small red circle"] * 4, THREE, {"count"}),
        (["small red circle"] * 2 + ["small red ring"], THREE, {"shape"}),
        (["small red circle"] * 2 + ["small lime circle"], THREE, {"colour"}),
        ([], SMALL, {"count", "colour", "shape", "size"}),
    ],
)
def test_parts(words, said, expected):
    assert failed([seen_object(w) for w in words], said) == expected


def test_background_counts_where_it_is_claimed():
    objects = [seen_object("large red circle")]
    assert failed(objects, ON_NAVY, "navy") == set()
    assert failed(objects, ON_NAVY, "white") == {"background"}
    assert failed(objects, SINGLE, "unknown") == set()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((CIRCLE, 0.2, 0.4), (STAR, 0.8, 0.6), set()),
        ((STAR, 0.8, 0.6), (CIRCLE, 0.2, 0.4), set()),  # whatever the order of the reader
        ((CIRCLE, 0.8, 0.4), (STAR, 0.2, 0.6), {"relation"}),
        ((CIRCLE, 0.4, 0.2), (STAR, 0.6, 0.8), {"relation"}),  # rather above
        ((CIRCLE, 0.2, 0.5), ("large red star", 0.8, 0.5), {"colour"}),
        ((CIRCLE, 0.8, 0.5), ("large blue unknown", 0.2, 0.5), {"shape", "relation"}),
        # Colours and shapes bound the wrong way.
        (("large blue circle", 0.2, 0.5), ("large red star", 0.8, 0.5), {"colour"}),
    ],
)
def test_relation(first, second, expected):
    assert failed([seen_object(*first), seen_object(*second)], LEFT) == expected


def test_relation_with_too_few_and_too_many():
    circle, star = seen_object(CIRCLE, 0.2), seen_object(STAR, 0.8)
    everything = {"count", "colour", "shape", "relation"}
    assert failed([], LEFT) == everything and failed([circle], LEFT) == everything
    assert failed([seen_object(STAR, 0.1, 0.9), circle, star], LEFT) == {"count"}


def test_sides():
    a, right = seen_object(CIRCLE, 0.4, 0.4), seen_object(STAR, 0.7, 0.5)
    below = seen_object(STAR, 0.5, 0.7)
    assert holds(a, "left of", right) and holds(right, "right of", a)
    assert holds(a, "above", below) and holds(below, "below", a)
    assert not holds(a, "right of", right) and not holds(a, "above", right)
    assert not holds(a, "left of", below) and not holds(a, "below", below)
    with pytest.raises(UserError, match="near"):
        holds(a, "near", right)
