"""Tells the style of a picture: a kernel classifier, fitted to true pictures in a minute.

Designers differ in their palette, in flat or shaded areas and in the strength of outlines. So the
features are a histogram of colours and one of local contrast. They say little about what a picture
shows. The classifier is kernel ridge regression (Saunders et al. 1998) with the kernel
exp(-gamma |sqrt(p) - sqrt(q)|), on histograms p and q.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from imagen_jax.data.images import resize_uint8

# Side in pixels at which styles are compared.
SIDE = 64
_COLOUR_BINS = 10
_GAMMA = 0.3
_RIDGE = 0.01
# Of the difference of neighbouring pixels, with white 1 and black 0.
_CONTRASTS = (0.002, 0.006, 0.015, 0.03, 0.06, 0.1, 0.15, 0.25, 0.4, 0.6)
_BRIGHTNESSES = 4
# Two styles are one if so large a share of their pictures is taken for the other style.
_CONFUSED = 0.2


def features(picture: np.ndarray) -> np.ndarray:
    """Histograms of a picture `[H, W, 3]` uint8: `[F]` float32, each of sum 1."""
    pixels = resize_uint8(picture, SIDE, SIDE).astype(np.float32) / 255.0
    grey = pixels.mean(axis=-1)
    parts = [_colours(pixels.reshape(-1, 3))]
    for factor in (1, 2, 4):
        side = SIDE // factor
        parts.append(_contrasts(grey.reshape(side, factor, side, factor).mean(axis=(1, 3))))
    return np.concatenate(parts).astype(np.float32)


def _colours(pixels: np.ndarray) -> np.ndarray:
    """A joint histogram of `[N, 3]` colours in [0, 1], shared among the neighbouring bins."""
    place = pixels * (_COLOUR_BINS - 1)
    low = np.minimum(place.astype(np.int64), _COLOUR_BINS - 2)
    upper = place - low
    histogram = np.zeros(_COLOUR_BINS**3)
    for corner in np.ndindex(2, 2, 2):
        weights = np.prod(np.where(corner, upper, 1.0 - upper), axis=1)
        bins = np.ravel_multi_index(tuple((low + corner).T), (_COLOUR_BINS,) * 3)
        histogram += np.bincount(bins, weights, _COLOUR_BINS**3)
    return histogram / len(pixels)


def _contrasts(grey: np.ndarray) -> np.ndarray:
    """A joint histogram of the gradient and the brightness of `[S, S]` grey values in [0, 1]."""
    across = grey[1:-1, 2:] - grey[1:-1, :-2]
    down = grey[2:, 1:-1] - grey[:-2, 1:-1]
    contrast = np.digitize(np.hypot(across, down), _CONTRASTS)
    brightness = np.minimum((grey[1:-1, 1:-1] * _BRIGHTNESSES).astype(np.int64), _BRIGHTNESSES - 1)
    bins = contrast * _BRIGHTNESSES + brightness
    return np.bincount(bins.ravel(), minlength=(len(_CONTRASTS) + 1) * _BRIGHTNESSES) / bins.size


@dataclasses.dataclass(frozen=True, eq=False)
class StyleClassifier:
    """A fitted classifier.

    Attributes:
      styles: in order.
      families: for each style, those that it cannot be told apart from, itself included.
      roots: `[N, F]` float32, square roots of the features that it was fitted to.
      weights: `[N, S]` float32.
    """

    styles: tuple[str, ...]
    families: dict[str, frozenset[str]]
    roots: np.ndarray
    weights: np.ndarray

    def predict(self, rows: np.ndarray) -> list[str]:
        """The style of each row of features `[B, F]`."""
        values = _kernel(np.sqrt(rows), self.roots) @ self.weights
        return [self.styles[i] for i in values.argmax(axis=1)]

    def is_style(self, predicted: str, style: str) -> bool:
        """Whether `predicted` is `style`, or one that it cannot be told apart from."""
        return predicted in self.families[style]


def fit(rows: np.ndarray, styles: Sequence[str]) -> StyleClassifier:
    """Fits a classifier.

    Two styles count as one if a classifier fitted to the even rows takes a fifth or more of the odd
    rows of either for the other: they are the same drawings then.

    Args:
      rows: `[N, F]` features, of each style at least two.
      styles: of the rows.
    """
    names = tuple(sorted(set(styles)))
    alone = {name: frozenset({name}) for name in names}
    # Every other picture of each style.
    seen: dict[str, int] = {}
    is_even = []
    for style in styles:
        seen[style] = seen.get(style, 0) + 1
        is_even.append(seen[style] % 2 == 1)
    even = np.array(is_even)
    labels = np.array([names.index(style) for style in styles])
    roots, weights = _solve(rows[even], labels[even], len(names))
    half = StyleClassifier(names, alone, roots, weights)
    confusion = np.zeros((len(names), len(names)))
    for label, found in zip(labels[~even], half.predict(rows[~even]), strict=True):
        confusion[label, names.index(found)] += 1
    confusion /= np.maximum(confusion.sum(axis=1, keepdims=True), 1.0)
    return StyleClassifier(names, _families(names, confusion), *_solve(rows, labels, len(names)))


def _families(names: Sequence[str], confusion: np.ndarray) -> dict[str, frozenset[str]]:
    families = {name: {name} for name in names}
    for i, j in zip(*np.nonzero(confusion >= _CONFUSED), strict=True):
        if i != j:
            joined = families[names[i]] | families[names[j]]
            for name in joined:
                families[name] = joined
    return {name: frozenset(members) for name, members in families.items()}


def _solve(rows: np.ndarray, labels: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.linalg import cho_factor, cho_solve

    roots = np.sqrt(rows)
    kernel = _kernel(roots, roots)
    kernel[np.diag_indices(len(roots))] += _RIDGE
    targets = np.full((len(roots), number), -1.0, np.float32)
    targets[np.arange(len(roots)), labels] = 1.0
    return roots, cho_solve(cho_factor(kernel, overwrite_a=True), targets)


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """exp(-gamma |a_i - b_j|) of `[M, F]` and `[N, F]`: `[M, N]` float32."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2.0 * a @ b.T
    return np.exp(-_GAMMA * np.sqrt(np.maximum(squares, 0.0)))
