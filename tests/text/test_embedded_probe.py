"""A linear probe reads the claims of a caption from the embedded encoder's output.

The probe sees only the mean of the states of a caption's valid tokens: one vector of the encoder's
width, without positions or words. It is a multinomial logistic regression, fitted on some captions
and scored on others.
"""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from imagen_jax.config import TextConfig
from imagen_jax.data.builtin.shapes import captions
from imagen_jax.text.encoder import load_encoder
from tools.embedded_encoder.corpus import emoji_names
from tools.embedded_encoder.probe import probe as icons_probe

LENGTH = 24
# A U-Net can draw only what the text condition holds.
REQUIRED = 0.99


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(TextConfig(max_length=LENGTH))


def distinct_captions(kind, count):
    """Different texts of both splits (the probe is about words, not about what was held out)."""
    found = {}
    streams = [captions(77, split=split, kind=kind) for split in ("train", "held_out")]
    for caption in itertools.chain.from_iterable(zip(*streams, strict=True)):
        found.setdefault(caption.text, caption)
        if len(found) == count:
            return list(found.values())


def pooled(encoder, texts):
    """Mean over valid tokens `[N, D]`."""
    rows = []
    for start in range(0, len(texts), 250):
        text = encoder.encode_captions(texts[start : start + 250])
        tokens, mask = np.asarray(text.tokens), np.asarray(text.mask)
        rows.append((tokens * mask[:, :, None]).sum(1) / mask.sum(1)[:, None])
    return np.concatenate(rows).astype(np.float64)


def probe_accuracy(x_train, labels_train, x_test, labels_test):
    """Share of test rows that multinomial logistic regression gets right."""
    classes, y = np.unique(labels_train, return_inverse=True)
    mean, std = x_train.mean(0), x_train.std(0) + 1e-6
    x = np.concatenate([(x_train - mean) / std, np.ones((len(x_train), 1))], axis=1)
    target = np.eye(len(classes))[y]

    def loss(flat):
        w = flat.reshape(x.shape[1], len(classes))
        log_p = log_softmax(x @ w, axis=1)
        grad = x.T @ (np.exp(log_p) - target) / len(x) + 1e-5 * w
        return -(log_p * target).sum() / len(x) + 0.5e-5 * (w * w).sum(), grad.ravel()

    start = np.zeros(x.shape[1] * len(classes))
    w = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    test = np.concatenate([(x_test - mean) / std, np.ones((len(x_test), 1))], axis=1)
    guess = classes[(test @ w.reshape(x.shape[1], -1)).argmax(1)]
    return float((guess == np.asarray(labels_test)).mean())


def probe(encoder, kind, num_train, num_test, readings):
    """Accuracy of each named reading of captions of a kind."""
    found = distinct_captions(kind, num_train + num_test)
    features = pooled(encoder, [caption.text for caption in found])
    accuracy = {}
    for name, read in readings.items():
        labels = [read(caption) for caption in found]
        accuracy[name] = probe_accuracy(
            features[:num_train], labels[:num_train], features[num_train:], labels[num_train:]
        )
    print(kind, accuracy)
    return accuracy


FIRST = {
    "colour": lambda c: c.objects[0].colour,
    "shape": lambda c: c.objects[0].shape,
    "background": lambda c: str(c.background),
}


@pytest.mark.slow
def test_colour_and_shape_of_each_object_and_the_relation(encoder):
    readings = FIRST | {
        "second colour": lambda c: c.objects[1].colour,
        "second shape": lambda c: c.objects[1].shape,
        "relation": lambda c: c.relation,
    }
    accuracy = probe(encoder, "relation", 3000, 1000, readings)
    assert min(accuracy.values()) >= REQUIRED, accuracy


@pytest.mark.slow
def test_size_of_single_objects(encoder):
    accuracy = probe(
        encoder, "single", 2000, 1000, FIRST | {"size": lambda c: str(c.objects[0].size)}
    )
    assert min(accuracy.values()) >= REQUIRED, accuracy


@pytest.mark.slow
def test_number_of_counted_objects(encoder):
    accuracy = probe(encoder, "count", 1600, 400, FIRST | {"count": lambda c: c.count})
    assert min(accuracy.values()) >= REQUIRED, accuracy


@pytest.mark.slow
def test_names_and_styles_of_icons_in_phrasings_that_nothing_was_fitted_on():
    """A part of the names, so that it takes seconds; the card has the figures of all."""
    encoder = load_encoder(TextConfig(encoder="embedded_icons", max_length=32))
    names = [name for name in emoji_names() if name.isascii() and "skin tone" not in name][::12]
    styles = ("noto", "twemoji", "fluent", "fluent 3d", "fluent flat", "emojione")
    assert len(names) > 100
    accuracy = icons_probe(encoder, [(name, style) for name in names for style in styles])
    assert min(accuracy["name"].values()) >= 0.98, accuracy
    assert min(accuracy["style"].values()) >= REQUIRED, accuracy
