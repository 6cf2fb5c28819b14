"""The training text of the embedded encoder: (text, target) pairs from templates.

The pretraining decoder writes the target from the pooled text. The target is the text itself or,
for scenes, the same scene in one fixed wording. So the states must hold not only the words but
their meaning together, such as which object is left of the other. There are no pictures. Every
combination of colour and shape occurs, including those that the `shapes` set holds out; so does
every name and style of the `icons` set.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection

from imagen_jax.data.builtin.icons.captions import with_article


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COLOURS = _words(
    "red orange yellow green blue purple pink brown black white gray grey cyan turquoise magenta "
    "violet teal gold silver beige navy lime lavender"
)
SHAPES = _words(
    "circle square triangle star heart ring cross diamond pentagon hexagon crescent oval ellipse "
    "rectangle arrow plus moon octagon disc dot box line cube ball"
)
SIZES = _words("small medium large tiny big huge little medium-sized")
NUMBERS = (_words("one two three four five"), _words("1 2 3 4 5"))
RELATIONS = {
    "left of": (
        "left of", "to the left of", "on the left of", "on the left side of", "at the left of",
    ),
    "right of": (
        "right of", "to the right of", "on the right of", "on the right side of", "at the right of",
    ),
    "above": ("above", "over", "on top of", "higher than", "directly above"),
    "below": ("below", "under", "beneath", "underneath", "lower than", "directly below"),
}  # fmt: skip

_SINGLE = ("{o}", "{o}", "a picture of {o}", "an image of {o}", "there is {o}", "one can see {o}",
           "a drawing of {o}", "we see {o}", "just {o}", "{o} alone")  # fmt: skip
_PAIR = (
    "{a} {r} {b}", "{a} {r} {b}", "{a} is {r} {b}", "there is {a} {r} {b}", "{a} sits {r} {b}",
    "{a} which is {r} {b}", "a picture of {a} {r} {b}", "{a} placed {r} {b}", "{a}, {r} {b}",
    "an image with {a} {r} {b}",
)  # fmt: skip
_TURNED = ("{r} {b} is {a}", "{r} {b} there is {a}", "{r} {b}, {a}", "{r} {b} sits {a}")
_SPLIT = {
    "left of": ("{a} on the left and {b} on the right", "{a} at the left, {b} at the right"),
    "right of": ("{a} on the right and {b} on the left", "{a} at the right, {b} at the left"),
    "above": ("{a} at the top and {b} at the bottom", "{a} on top, {b} at the bottom"),
    "below": ("{a} at the bottom and {b} at the top", "{a} at the bottom, {b} on top"),
}
_WITH = {
    "left of": ("{b} with {a} to its left", "{b} with {a} on its left", "{b} has {a} at its left"),
    "right of": (
        "{b} with {a} to its right", "{b} with {a} on its right", "{b} has {a} at its right",
    ),
    "above": ("{b} with {a} above it", "{b} with {a} over it", "{b} has {a} above it"),
    "below": ("{b} with {a} below it", "{b} with {a} under it", "{b} has {a} beneath it"),
}  # fmt: skip
_PLAIN_PAIR = ("{a} and {b}", "{a} next to {b}", "{a} with {b}", "{a}, {b}", "both {a} and {b}")
_GROUND = (
    "{s} on a {g} background", "{s} against a {g} background", "{s} on {g}", "{s} on {g} ground",
    "{s}, {g} background", "a {g} background with {s}", "on a {g} background, {s}",
)  # fmt: skip

_ADJECTIVES = _words(
    "old young happy sad bright dark cold warm new broken round flat soft hard wet dry quiet loud "
    "wooden golden shiny fluffy beautiful strange modern ancient colorful simple detailed"
)
_NOUNS = _words(
    "house road river mountain forest beach city street table chair window garden field sky sea "
    "lake bridge tower castle boat bottle lamp bed wall floor hill island cloud storm snow animal "
    "painter teacher farmer king queen robot monster dragon toy statue book letter photo"
)
_VERBS = _words("runs sleeps stands sits flies swims walks jumps waits looks shines falls rests")
_PLACES = (
    *_words("in on under near behind beside inside above below between over through"),
    "in front of",
    "next to",
    "on top of",
)
_STYLES = (
    "a photo of {x}", "a painting of {x}", "an oil painting of {x}", "a drawing of {x}",
    "a sketch of {x}", "a close-up of {x}", "{x} in watercolor", "a sticker of {x}",
    "an icon of {x}", "{x}, pixel art", "a cartoon of {x}", "{x}", "{x}", "an emoji of {x}",
    "a picture of {x}", "{x} at night", "{x} at sunset", "many {x}", "{x} on white",
)  # fmt: skip
# Of an icon: {c} its concept, {a} that with an article, {s} its style. `probe.py` has others.
_ICONS = (
    "{a}, {s} style", "{c}, {s} style", "{a} in the {s} style", "{c} in the {s} style",
    "{a} in {s} style", "{c} in {s} style", "{a}, {s}", "{c}, {s}", "{s} style, {c}", "{s}, {c}",
    "{c} ({s})", "{c} - {s} style", "the {c} in the style of {s}", "{a} in the style of {s}",
    "{a} drawn in the {s} style", "a {s} style picture of {c}", "an icon of {c} in the {s} style",
    "an emoji of {c}, {s} style", "{s} emoji of {a}", "a {s} icon: {c}", "{c} from {s}",
    "{a} by {s}", "{c} emoji, {s} style", "{a} on white, {s} style", "{c} icon in the {s} style",
    "a picture of {a}, {s} style", "a drawing of {c} in the {s} style", "the {s} version of {c}",
)  # fmt: skip


class Corpus:
    """Draws (text, target) pairs.

    Args:
      captions: further pairs, the captions of a data set and their fixed wordings.
      icons: concepts and styles of icons; all concepts are combined with all styles.
    """

    def __init__(
        self,
        captions: list[tuple[str, str]] | None = None,
        icons: Collection[tuple[str, str]] = (),
    ) -> None:
        self.concepts = sorted({concept for concept, _ in icons})
        self.styles = sorted({style for _, style in icons})
        self.names = sorted({*emoji_names(), *self.concepts})
        self.words = sorted({word for name in self.names for word in name.split()})
        self.captions = captions or []

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """One (text, target) pair, a function of the generator's state."""
        if self.concepts and rng.random() < 0.6:
            return self._icon(rng)
        kind = rng.random()
        if self.captions and kind < 0.4:
            return rng.choice(self.captions)
        if kind < 0.7:
            return scene(rng)
        if kind < 0.9:
            text = rng.choice(self.names)
            text = rng.choice(_STYLES).format(x=text) if rng.random() < 0.4 else text
        else:
            text = self._sentence(rng)
        return text, text

    def _icon(self, rng: random.Random) -> tuple[str, str]:
        """A phrasing of an icon, and the icon in its fixed wording: style, then concept."""
        concept, style = rng.choice(self.concepts), rng.choice(self.styles)
        if rng.random() < 0.2:
            text = rng.choice((concept, with_article(concept)))
            if rng.random() < 0.3:
                text = rng.choice(_STYLES).format(x=text)
            return text, f"any : {concept}"
        template = rng.choice(_ICONS)
        text = template.format(a=with_article(concept), c=concept, s=style)
        return text, f"{style} : {concept}"

    def _sentence(self, rng: random.Random) -> str:
        noun = lambda: rng.choice(_NOUNS if rng.random() < 0.5 else self.words)  # noqa: E731
        thing = f"{rng.choice(('a', 'the'))} {noun()}"
        if rng.random() < 0.6:
            adjective = rng.choice(_ADJECTIVES if rng.random() < 0.5 else (*COLOURS, *SIZES))
            thing = f"{rng.choice(('a', 'the'))} {adjective} {noun()}"
        other = f"{rng.choice(('a', 'the'))} {noun()}"
        text = rng.choice(
            (
                f"{thing} {rng.choice(_VERBS)} {rng.choice(_PLACES)} {other}",
                f"{thing} {rng.choice(_PLACES)} {other}",
                f"{thing} and {other}",
                thing,
                " ".join(noun() for _ in range(rng.randint(2, 6))),
                rng.choice(_STYLES).format(x=thing),
            )
        )
        return text


def emoji_names() -> list[str]:
    """English emoji names as plain lower-case words, sorted, without duplicates."""
    from emoji import EMOJI_DATA

    names = {re.sub(r"[:_]", " ", entry["en"]).strip().lower() for entry in EMOJI_DATA.values()}
    return sorted(names)


def scene(rng: random.Random) -> tuple[str, str]:
    """A caption of one, two or several equal objects, and the scene in its fixed wording."""
    kind = rng.random()
    if kind < 0.25:
        words, target = _objects(rng, 1)
        text = rng.choice(_SINGLE).format(o=words)
    elif kind < 0.45:
        words, target = _objects(rng, rng.randint(2, 5))
        text = rng.choice(_SINGLE).format(o=words)
    else:
        (a, target_a), (b, target_b) = _objects(rng, 1), _objects(rng, 1)
        if rng.random() < 0.5:
            b = re.sub(r"^(an?|one|1) ", "the ", b)
        if kind < 0.55:
            text = rng.choice(_PLAIN_PAIR).format(a=a, b=b)
            target = f"{target_a} and {target_b}"
        else:
            relation = rng.choice(list(RELATIONS))
            phrase = rng.choice(RELATIONS[relation])
            template = rng.choice((*_PAIR, *_TURNED, *_SPLIT[relation], *_WITH[relation]))
            text = template.format(a=a, b=b, r=phrase)
            target = f"{target_a} {relation.split()[0]} {target_b}"
    if rng.random() < 0.3:
        ground = rng.choice(COLOURS)
        text = rng.choice(_GROUND).format(s=text, g=ground)
        target = f"{target} on {ground}"
    if rng.random() < 0.1:
        text += "."
    return text, target


def _objects(rng: random.Random, count: int) -> tuple[str, str]:
    """Words for `count` equal objects, and their fixed wording."""
    size = rng.choice(SIZES) if rng.random() < 0.5 else ""
    colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    described = " ".join(filter(None, (size, colour, shape)))
    if count == 1:
        article = "an" if described[0] in "aeiou" else "a"
        article = rng.choice((article, article, article, "one", "1", "a single"))
        return f"{article} {described}", object_wording(1, colour, shape, size)
    plural = described + ("es" if shape.endswith(("s", "x")) else "s")
    number = rng.choice(NUMBERS)[count - 1]
    return f"{number} {plural}", object_wording(count, colour, shape, size)


def object_wording(count: int, colour: str, shape: str, size: str | None) -> str:
    """Equal objects in the fixed wording: count, colour, shape, size."""
    return f"{count} {colour} {shape} {size or 'plain'}"
