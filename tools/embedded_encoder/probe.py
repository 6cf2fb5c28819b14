"""Reads names and styles of icons off an encoder: `python -m tools.embedded_encoder.probe ICONS`.

The probe is a linear classifier of the mean of a caption's valid states. It is fitted on the
captions that training draws (`data.builtin.icons.captions`) and scored on other phrasings, which
the encoder was not trained on either. A second argument names another encoder than embedded_icons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app

from imagen_jax.config import TextConfig
from imagen_jax.data.builtin.icons.captions import icon_captions, with_article
from imagen_jax.data.builtin.icons.records import IconRecords
from imagen_jax.text.encoder import TextEncoder, load_encoder

NO_STYLE = ""
# None of them is in `corpus._ICONS`.
PHRASINGS = ("{s} style: {c}", "the {c} in {s} style", "the {c}, {s} style")
_STEPS, _BATCH = 1500, 2048


def probe(encoder: TextEncoder, icons: Sequence[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Accuracies by what is read ("name", "style") and phrasing.

    Args:
      encoder: of any kind.
      icons: concept and style of each.
    """
    fit = sorted({row for icon in icons for row in _captions(*icon)})
    features = _pooled(encoder, [text for text, _, _ in fit])
    scored = {}
    for phrasing in PHRASINGS:
        rows = [(phrasing.format(c=concept, s=style), concept, style) for concept, style in icons]
        scored[phrasing] = (rows, _pooled(encoder, [text for text, _, _ in rows]))
    accuracy: dict[str, dict[str, float]] = {}
    for what, column in (("name", 1), ("style", 2)):
        classes, labels = np.unique([row[column] for row in fit], return_inverse=True)
        guess = _classifier(features, labels, len(classes))
        accuracy[what] = {
            phrasing: float(np.mean(classes[guess(x)] == np.array([row[column] for row in rows])))
            for phrasing, (rows, x) in scored.items()
        }
    return accuracy


def _captions(concept: str, style: str) -> list[tuple[str, str, str]]:
    """The captions of an icon with what they say."""
    plain = {concept, with_article(concept)}
    return [
        (text, concept, NO_STYLE if text in plain else style)
        for text in icon_captions(concept, style, "")
    ]


def _pooled(encoder: TextEncoder, texts: Sequence[str], batch: int = 1000) -> np.ndarray:
    """Means over valid tokens `[N, D]`."""
    rows = []
    for start in range(0, len(texts), batch):
        part = list(texts[start : start + batch])
        filled = part + [""] * (batch - len(part))  # one shape, compiled once
        text = encoder.encode_captions(filled)
        tokens, mask = np.asarray(text.tokens), np.asarray(text.mask)
        means = (tokens * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
        rows.append(means[: len(part)])
    return np.concatenate(rows)


def _classifier(
    features: np.ndarray, labels: np.ndarray, num_classes: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Multinomial logistic regression; returns what guesses classes of features."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    x, y = jnp.asarray((features - mean) / std), jnp.asarray(labels)
    params = {"w": jnp.zeros((x.shape[1], num_classes)), "b": jnp.zeros(num_classes)}
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, _STEPS))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        rows = jax.random.randint(key, (_BATCH,), 0, len(y))

        def loss(params):
            logits = x[rows] @ params["w"] + params["b"][None]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    for key in jax.random.split(jax.random.key(0), _STEPS):
        params, state = step(params, state, key)
    w, b = np.asarray(params["w"]), np.asarray(params["b"])
    return lambda features: (((features - mean) / std) @ w + b).argmax(1)


def main(argv: list[str]) -> None:
    """Prints the accuracies."""
    if len(argv) not in (2, 3):
        raise app.UsageError("Give the directory of scripts/fetch_icons.sh, and maybe an encoder.")
    records = IconRecords(argv[1], None, 64)
    keys = [records.key(index) for index in range(len(records))]
    icons = sorted({(key.concept, key.style) for key in keys})
    encoder = load_encoder(
        TextConfig(encoder=argv[2] if len(argv) == 3 else "embedded_icons", max_length=32)
    )
    print(f"{len(icons)} icons with {len({concept for concept, _ in icons})} names")
    for what, by_phrasing in probe(encoder, icons).items():
        for phrasing, accuracy in by_phrasing.items():
            print(f"{what:5} {accuracy:7.2%}  {phrasing}")


if __name__ == "__main__":
    app.run(main)
