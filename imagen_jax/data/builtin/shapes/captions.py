"""Captions of scenes: their phrasings, and what each caption claims.

All that a caption says is true of its scene; what it does not mention may be anything. The claims
are stored with the text, so that a picture can be checked against each part of its caption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from imagen_jax.data.builtin.shapes.scenes import Draw, Scene, scene

MENTION_SIZE = 0.3
MENTION_BACKGROUND = 0.3

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five")
_PLURALS = {"cross": "crosses"}

# {a} is an article and noun phrase ("a red circle"), {noun} the phrase without the article.
SINGLE_PHRASES = (
    "{a}",
    "{noun}",
    "a picture of {a}",
    "an image of {a}",
    "a drawing of {a}",
    "there is {a}",
    "{a_shape} that is {adjectives}",
)

# {a} is the first object, {b} the second; {a} is {relation} {b}.
RELATION_PHRASES = {
    "left of": (
        "{a} left of {b}",
        "{a} to the left of {b}",
        "{a} is left of {b}",
        "a picture of {a} to the left of {b}",
        "there is {a} left of {b}",
        "{b} with {a} to its left",
        "to the left of {b} is {a}",
    ),
    "right of": (
        "{a} right of {b}",
        "{a} to the right of {b}",
        "{a} is right of {b}",
        "a picture of {a} to the right of {b}",
        "there is {a} right of {b}",
        "{b} with {a} to its right",
        "to the right of {b} is {a}",
    ),
    "above": (
        "{a} above {b}",
        "{a} over {b}",
        "{a} is above {b}",
        "a picture of {a} above {b}",
        "there is {a} above {b}",
        "{b} with {a} above it",
        "above {b} is {a}",
    ),
    "below": (
        "{a} below {b}",
        "{a} under {b}",
        "{a} is below {b}",
        "a picture of {a} below {b}",
        "there is {a} below {b}",
        "{b} with {a} below it",
        "below {b} is {a}",
    ),
}

# {nouns} is plural from two on.
COUNT_PHRASES = (
    "{number} {nouns}",
    "{digit} {nouns}",
    "a picture of {number} {nouns}",
    "an image of {number} {nouns}",
    "exactly {number} {nouns}",
    "there {are} {number} {nouns}",
)

BACKGROUND_PHRASES = (
    "{text} on a {background} background",
    "{text} on {background}",
    "{text}, {background} background",
)


@dataclasses.dataclass(frozen=True)
class ObjectClaim:
    """What a caption says about one object; `size` is None if it does not mention the size."""

    colour: str
    shape: str
    size: str | None = None


@dataclasses.dataclass(frozen=True)
class Caption:
    """A text and what it claims.

    Attributes:
      text: the caption.
      kind: the kind of scene, see `scenes.KINDS`.
      objects: the claims about each object, in the order of the relation if there is one. The equal
        objects of kind "count" are one entry.
      count: objects in the picture.
      relation: `objects[0]` is `relation` `objects[1]`; None for other kinds than "relation".
      background: name of the background if the caption mentions it, else None.
    """

    text: str
    kind: str
    objects: tuple[ObjectClaim, ...]
    count: int
    relation: str | None = None
    background: str | None = None


def caption(scene: Scene, seed: int = 0, index: int = 0) -> Caption:
    """A caption of the scene; (seed, index) determines its phrasing and what it mentions."""
    draw = Draw("caption", seed, index)
    mention_size = scene.kind == "single" and draw.chance(MENTION_SIZE)
    background = scene.background if draw.chance(MENTION_BACKGROUND) else None
    described = scene.objects[:1] if scene.kind == "count" else scene.objects
    claims = tuple(
        ObjectClaim(o.colour, o.shape, o.size if mention_size else None) for o in described
    )
    if scene.kind == "single":
        text = _single_text(draw, claims[0])
    elif scene.kind == "count":
        text = _count_text(draw, claims[0], len(scene.objects))
    else:
        first, second = (_with_article(_noun(claim)) for claim in claims)
        text = draw.choice(RELATION_PHRASES[scene.relation]).format(a=first, b=second)
    if background:
        text = draw.choice(BACKGROUND_PHRASES).format(text=text, background=background)
    return Caption(text, scene.kind, claims, len(scene.objects), scene.relation, background)


def captions(
    seed: int, start: int = 0, split: str = "train", kind: str | None = None
) -> Iterator[Caption]:
    """The endless captions of the scenes `start`, `start + 1`, ... of the sequence `seed`."""
    index = start
    while True:
        yield caption(scene(seed, index, split, kind), seed, index)
        index += 1


def _single_text(draw: Draw, claim: ObjectClaim) -> str:
    noun = _noun(claim)
    return draw.choice(SINGLE_PHRASES).format(
        a=_with_article(noun),
        noun=noun,
        a_shape=_with_article(claim.shape),
        adjectives=f"{claim.size} and {claim.colour}" if claim.size else claim.colour,
    )


def _count_text(draw: Draw, claim: ObjectClaim, count: int) -> str:
    plural = _PLURALS.get(claim.shape, claim.shape + "s")
    return draw.choice(COUNT_PHRASES).format(
        number=NUMBER_WORDS[count],
        digit=count,
        nouns=f"{claim.colour} {claim.shape if count == 1 else plural}",
        are="is" if count == 1 else "are",
    )


def _noun(claim: ObjectClaim) -> str:
    return " ".join(word for word in (claim.size, claim.colour, claim.shape) if word)


def _with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun
