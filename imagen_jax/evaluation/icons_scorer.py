"""The scorer of icons: does a picture show this name, and is it of this style?

*Name*: among the true pictures of 500 names of the style, the one of this name is the nearest
(`icon_gallery`). By chance that happens in 0.2 % of cases. *Style*: a classifier that is fitted to
true pictures of training (`style_classifier`) says so.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from imagen_jax.config import DataConfig
from imagen_jax.data.builtin.icons.captions import icon_captions
from imagen_jax.data.builtin.icons.groups import GROUPS, SEEN
from imagen_jax.data.builtin.icons.key import IconKey
from imagen_jax.data.builtin.icons.records import IconRecords
from imagen_jax.data.images import decode_crop
from imagen_jax.data.open import load_records
from imagen_jax.data.records import Records
from imagen_jax.data.source import BadItem, hash01
from imagen_jax.evaluation import style_classifier
from imagen_jax.evaluation.caption_accuracy import Score
from imagen_jax.evaluation.icon_gallery import Gallery, make_gallery
from imagen_jax.evaluation.prompt_set import Prompt, PromptSet, prompt_seed

PARTS = ("name", "style")
# Names of a style that a picture is compared with, its own included.
NUM_NAMES = 500
# Pictures of each style that the classifier is fitted to, at most.
NUM_FITTED = 1000
# Side of the pictures that true ones are compared at; drawn ones may be larger.
_SIDE = 64


class IconsScorer:
    """A `Scorer`. It needs some minutes for sets that are not yet drawn: give it a store of them.

    Args:
      data: of a set of icons, or of a store that was made of one.

    Attributes:
      groups: those of `icons.groups` that the set has.
      parts: "name" and "style"; "name" alone if the set has one style.
    """

    min_resolution = 64

    def __init__(self, data: DataConfig):
        self._data = data
        self._records = functools.cache(self._load)
        self._gallery = functools.cache(self._make_gallery)
        keys = [IconKey.parse(key) for key in self._keys()]
        # By hash, so that a set that grows keeps its order.
        order = sorted(range(len(keys)), key=lambda row: hash01(f"evaluate/icons/{keys[row]}"))
        self._icons = [(row, keys[row]) for row in order]
        self._rows = {str(key): row for row, key in self._icons}
        present = {key.group for _, key in self._icons}
        self.groups = tuple(group for group in GROUPS if group in present)
        self._styles = tuple(sorted({key.style for _, key in self._icons}))
        self.parts = PARTS if len(self._styles) > 1 else PARTS[:1]

    def prompts(self, number: int) -> PromptSet:
        """Names with their styles, such as "a strawberry, noto style"; see `Scorer.prompts`.

        Fewer than `number` where a group has fewer icons than its share.
        """
        queues = {g: [(r, k) for r, k in self._icons if k.group == g] for g in self.groups}
        chosen, turns = [], itertools.count()
        while len(chosen) < number and any(queues.values()):
            turn = next(turns)
            for group in self.groups:
                if queues[group] and len(chosen) < number:
                    row, key = queues[group].pop(0)
                    text = icon_captions(key.concept, key.style, "")[0]
                    seed = prompt_seed(group, turn)
                    chosen.append((row, Prompt(group, turn, text, seed, claims=key)))
        notes = []
        if missing := [group for group in GROUPS if group not in self.groups]:
            notes.append(f"The set has no icons of the groups {', '.join(missing)}.")
        if len(chosen) < number:
            notes.append(f"The set has {len(chosen)} icons, so there are no more prompts.")
        rows = [row for row, _ in chosen]
        return PromptSet(
            prompts=tuple(prompt for _, prompt in chosen),
            true_pictures=lambda size: (self._picture(row, size) for row in rows),
            notes=tuple(notes),
        )

    def score(self, pictures: Iterable[np.ndarray], prompts: Sequence[Prompt]) -> list[Score]:
        """Compares each picture with true ones; see `Scorer.score`."""
        scores = []
        for picture, prompt in zip(pictures, prompts, strict=True):
            key: IconKey = prompt.claims
            own = self._picture(self._rows[str(key)], _SIDE)
            found = self._gallery(key.style).nearest(picture, str(key), own, NUM_NAMES - 1)
            parts = {"name": found == str(key)}
            seen = f"like {IconKey.parse(found).concept!r}"
            if len(self._styles) > 1:
                classifier = self._classifier
                (style,) = classifier.predict(style_classifier.features(picture)[None])
                parts["style"] = classifier.is_style(style, key.style)
                seen += f", in {style} style"
            scores.append(Score(parts, seen))
        return scores

    @property
    def notes(self) -> tuple[str, ...]:
        """How good the classifier of styles is; see `Scorer.notes`."""
        names = f"Name: nearest of at most {NUM_NAMES} pictures of its style at 32x32 pixels."
        if len(self._styles) == 1:
            return (names,)
        found = []
        families = {f for f in self._classifier.families.values() if len(f) > 1}
        found += [
            f"The styles {' and '.join(sorted(family))} count as one: the classifier cannot tell "
            "them apart."
            for family in sorted(families, key=sorted)
        ]
        right, total = self._held_out_accuracy
        if total:
            found.append(
                f"Style: the classifier is right for {right} of {total} true pictures that it was "
                f"not fitted to ({right / total:.1%})."
            )
        return (names, *found)

    def _load(self, size: int) -> Records:
        if self._data.source == "icons":
            return IconRecords(self._data.path, None, size)
        return load_records(self._data, None)

    def _keys(self) -> Iterator[str]:
        records = self._records(_SIDE)
        if isinstance(records, IconRecords):
            return (str(records.key(row)) for row in range(len(records)))
        return (records.record(row).key for row in range(len(records)))

    def _picture(self, row: int, size: int) -> np.ndarray:
        """`[size, size, 3]` uint8."""
        # A store has pictures of one size, the icons themselves are drawn at any.
        records = self._records(size if self._data.source == "icons" else _SIDE)
        image = records.record(row).image
        return decode_crop(image, size, size, max_pixels=self._data.max_pixels)

    def _make_gallery(self, style: str) -> Gallery:
        """The first icons of a style, as many as a picture is compared with."""
        keys, pictures = [], []
        for row, key in self._icons:
            if key.style == style and len(keys) < NUM_NAMES:
                try:
                    pictures.append(self._picture(row, _SIDE))
                except BadItem:
                    continue
                keys.append(str(key))
        return make_gallery(keys, pictures)

    @functools.cached_property
    def _classifier(self) -> style_classifier.StyleClassifier:
        number: collections.Counter[str] = collections.Counter()
        chosen = []
        for row, key in self._icons:
            if key.group == SEEN and number[key.style] < NUM_FITTED:
                number[key.style] += 1
                chosen.append((row, key))
        print(f"fitting the classifier of styles to {len(chosen):,} true pictures")
        rows, styles = self._features(chosen)
        return style_classifier.fit(rows, styles)

    @functools.cached_property
    def _held_out_accuracy(self) -> tuple[int, int]:
        """How many of the held-out true pictures the classifier gets right, and their number."""
        held_out = [(row, key) for row, key in self._icons if key.group != SEEN]
        if not held_out:
            return 0, 0
        rows, styles = self._features(held_out)
        found = self._classifier.predict(rows)
        right = sum(self._classifier.is_style(f, s) for f, s in zip(found, styles, strict=True))
        return right, len(styles)

    def _features(self, icons: Sequence[tuple[int, IconKey]]) -> tuple[np.ndarray, list[str]]:
        rows, styles = [], []
        for row, key in icons:
            try:
                picture = self._picture(row, style_classifier.SIDE)
            except BadItem:
                continue
            rows.append(style_classifier.features(picture))
            styles.append(key.style)
        return np.stack(rows), styles


def is_icons(data: DataConfig) -> bool:
    """Whether the pictures of a source are icons: the set itself, or a store made of one."""
    if data.source == "icons":
        return True
    if data.source != "array_record":
        return False
    records = load_records(data, None)
    try:
        IconKey.parse(records.record(0).key)
    except (ValueError, BadItem):
        return False
    return True
