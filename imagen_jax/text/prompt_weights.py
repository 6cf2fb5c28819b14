r"""Weights of the parts of a prompt: "a (red circle:1.4) on blue".

`(text:1.4)` gives its text the weight 1.4. Weights within weights are multiplied. `\(`, `\)`, `\:`
and `\\` are these characters themselves. A prompt of its own is made of the text without the marks,
so a weight of 1 changes nothing.

The embedding of a token with weight w becomes e + w (z - e), with e that of the empty prompt: at 0
it says nothing, above 1 it is exaggerated. This is the rule of ComfyUI (`comfy/sd1_clip.py`) with
one e for all tokens, since a T5 reads no padding. Scaling z itself would do nothing: the networks
normalize each token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from imagen_jax.errors import UserError

_MARK = re.compile(r"\\[()\\:]|[()]")
# ":1.4)", after the text of a part.
_WEIGHT = re.compile(r":\s*([^:()\\]*?)\s*\)")


def parse_weights(prompt: str) -> tuple[str, np.ndarray]:
    """The text of a prompt without its marks, and the weight of each of its characters.

    Returns:
      The text, and `[len(text)]` float32.

    Raises:
      UserError: a bracket without its partner, or a weight that is missing, no number, negative or
        not finite.
    """
    text, weights = [], []
    starts: list[int] = []  # places in `text` where the open parts begin
    place = 0
    while place < len(prompt):
        weight = _WEIGHT.match(prompt, place) if starts else None
        mark = _MARK.match(prompt, place)
        if weight:
            factor = _number(prompt, weight[1])
            start = starts.pop()
            weights[start:] = [w * factor for w in weights[start:]]
            place = weight.end()
            continue
        if mark and mark[0] == "(":
            starts.append(len(text))
        elif mark and mark[0] == ")":
            reason = "a part has no weight" if starts else "a closing bracket has no opening one"
            raise UserError(_unreadable(prompt, reason))
        else:
            text.append(mark[0][1] if mark else prompt[place])
            weights.append(1.0)
        place = mark.end() if mark else place + 1
    if starts:
        raise UserError(_unreadable(prompt, "an opening bracket has no closing one"))
    return "".join(text), np.array(weights, np.float32)


def token_weights(
    spans: Sequence[tuple[int, int]], weights: np.ndarray, first: int, length: int
) -> np.ndarray:
    """The weight of each token: the mean over its characters, spaces left out.

    Args:
      spans: of the pieces of a text, the places of the first character and behind the last one.
      weights: `[C]` float32 of the characters, NaN for those that are left out.
      first: tokens before the pieces.
      length: tokens L to which a prompt is cut; the last one is the end of the text.

    Returns:
      `[L]` float32, 1 for tokens that are no pieces.
    """
    result = np.ones(length, np.float32)
    for token, (start, end) in enumerate(spans[: length - 1 - first], first):
        # A part of a character has no length; it begins where its character does.
        own = weights[start : max(end, start + 1)]
        own = own[~np.isnan(own)]
        if len(own):
            result[token] = own.mean()
    return result


def apply_weights(tokens: np.ndarray, weights: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """e + w (z - e), see the module.

    Args:
      tokens: `[..., L, D]` float32, 0 where padded.
      weights: `[..., L]` float32, 1 where padded.
      empty: `[D]` float32, the token of the empty prompt.

    Returns:
      `[..., L, D]` float32; tokens of weight 1 are exactly as they were.
    """
    weights = weights[..., None]
    return np.where(weights == 1.0, tokens, empty + weights * (tokens - empty))


def _number(prompt: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError as error:
        raise UserError(_unreadable(prompt, f"the weight {text!r} is not a number")) from error
    if not (math.isfinite(weight) and weight >= 0.0):
        raise UserError(_unreadable(prompt, f"the weight {text} must be finite and not negative"))
    return weight


def _unreadable(prompt: str, reason: str) -> str:
    return (
        f"the weights in the prompt {prompt!r} cannot be read: {reason}. A part with a weight is "
        r"written (red circle:1.4); for brackets themselves write \( and \)"
    )
