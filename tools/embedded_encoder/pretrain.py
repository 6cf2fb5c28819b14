"""Pretraining of the embedded encoder: denoising auto-encoding through a bottleneck.

Span corruption alone teaches little on templates: the colour before "circle" cannot be guessed from
the rest of the text, so the states need not hold it. Here a temporary decoder writes the target
text from the mean of the encoder's states (in a quarter of the rows from the mean of half of them),
by one linear map for each position of the target. So each state must hold the role of its word: to
which object a colour belongs, on which side of a relation a noun stands.

With this loss alone the states hold bags of words for a long time. A second loss predicts the
position of each word in the target from its own state, which teaches the roles early. A
masked-token loss (BERT, Devlin et al. 2019) in another quarter of the rows teaches the usual
neighbours of words.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import time
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from imagen_jax.text.t5 import T5Config, T5Encoder
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.types import Array, Params
from tools.embedded_encoder.corpus import Corpus

MASK_ID = 2  # the unknown token, which no text contains, thanks to byte fallback


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of the training; `length` is the maximum number of tokens of source and target."""

    num_steps: int = 2600
    batch_size: int = 64
    length: int = 24
    learning_rate: float = 2e-3
    mask_rate: float = 0.15
    seed: int = 0


class Pretraining(nn.Module):
    """Encoder, decoder and the heads of the other losses; returns the loss and its parts."""

    config: T5Config
    length: int

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        c = self.config
        states = T5Encoder(c, name="encoder")(batch["ids"], batch["mask"])
        weights = (batch["mask"] & batch["pool"]).astype(jnp.float32)[:, :, None]
        pooled = jnp.sum(states * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1.0)
        output = nn.Dense(c.vocab_size, use_bias=False, name="output")
        # The decoder: one linear map for each position in the target.
        positions = batch["target"].shape[1]
        written = nn.Dense(self.length * c.d_model, name="decoder")(pooled)
        written = written.reshape(-1, self.length, c.d_model)[:, :positions]
        write_loss = _cross_entropy(output(written), batch["target"], batch["target_mask"])
        # Few positions are masked, so logits are computed for a fixed small number of them.
        rows = jnp.arange(states.shape[0])[:, None]
        guessed = nn.Dense(c.d_model, name="guess")(states[rows, batch["masked_at"]])
        truth = batch["original"][rows, batch["masked_at"]]
        mask_loss = _cross_entropy(output(guessed), truth, batch["masked_valid"])
        placed = nn.Dense(self.length, name="place")(states)[:, :, :positions]
        place_loss = _cross_entropy(placed, batch["place"], batch["place_valid"])
        parts = {"write": write_loss, "place": place_loss, "mask": mask_loss}
        return write_loss + place_loss + 0.3 * mask_loss, parts


def pretrain(
    config: T5Config,
    tokenizer: Tokenizer,
    corpus: Corpus,
    settings: PretrainConfig,
    report: Callable[[str], None],
) -> Params:
    """Trains from scratch and returns the encoder's parameters.

    The same arguments give the same batches and, on the same kind of machine, the same parameters.
    """
    model = Pretraining(config, settings.length)
    stream = batches(tokenizer, corpus, settings)
    first = next(stream)
    params = jax.jit(model.init)(jax.random.key(settings.seed), first)["params"]
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.num_steps // 20, settings.num_steps
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-4))
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: optax.OptState, batch: dict[str, Array]):
        loss = lambda params: model.apply({"params": params}, batch)  # noqa: E731
        grads, parts = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, parts

    start, recent = time.monotonic(), []
    for i in range(settings.num_steps):
        params, state, parts = step(params, state, first if i == 0 else next(stream))
        recent.append(parts)
        if (i + 1) % 50 == 0 or i + 1 == settings.num_steps:
            spent = time.monotonic() - start
            left = spent / (i + 1) * (settings.num_steps - i - 1)
            means = {name: np.mean([entry[name] for entry in recent]) for name in parts}
            losses = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
            recent.clear()
            report(f"step {i + 1}/{settings.num_steps}: {losses} ({spent:.0f} s, {left:.0f} left)")
    return params["encoder"]


def batches(
    tokenizer: Tokenizer, corpus: Corpus, settings: PretrainConfig
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of texts of similar length, a function of `settings.seed`."""
    rng = random.Random(settings.seed)
    noise = np.random.default_rng(settings.seed)
    size = settings.batch_size

    def tokens_of(pair: tuple[str, str]) -> int:
        return 1 + max(len(tokenizer.pieces(text)) for text in pair)

    while True:
        pairs = sorted((corpus.draw(rng) for _ in range(8 * size)), key=tokens_of)
        groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        rng.shuffle(groups)
        for group in groups:
            longest = max(map(tokens_of, group))
            # Few lengths, since each is compiled.
            length = min(n for n in (10, 16, settings.length) if n >= min(longest, settings.length))
            yield _batch(tokenizer, group, length, settings.mask_rate, noise)


def _batch(
    tokenizer: Tokenizer,
    pairs: list[tuple[str, str]],
    length: int,
    mask_rate: float,
    noise: np.random.Generator,
) -> dict[str, np.ndarray]:
    original, mask = tokenizer([source for source, _ in pairs], length)
    target, target_mask = tokenizer([target for _, target in pairs], length)
    # Of four rows one is masked, and another is pooled over half of its states.
    row = np.arange(len(pairs))[:, None] % 4
    masked = (row == 0) & mask & (noise.random(mask.shape) < mask_rate)
    pool = (row != 1) | (noise.random(mask.shape) < 0.5)
    # Positions of the masked tokens first, in a fixed number of slots.
    order = np.argsort(~masked, axis=1, kind="stable")[:, : length // 5 + 1]
    # The position in the target of each word of the source, if the word occurs once in both.
    same = (original[:, :, None] == target[:, None, :]) & target_mask[:, None, :] & mask[:, :, None]
    unique = (same.sum(axis=2) == 1) & (
        np.take_along_axis(same.sum(axis=1), same.argmax(2), 1) == 1
    )
    return {
        "ids": np.where(masked, MASK_ID, original).astype(np.int32),
        "mask": mask,
        "pool": pool,
        "original": original,
        "target": target,
        "target_mask": target_mask,
        "masked_at": order.astype(np.int32),
        "masked_valid": np.take_along_axis(masked, order, axis=1),
        "place": same.argmax(axis=2).astype(np.int32),
        "place_valid": unique & ~masked,
    }


def _cross_entropy(logits: Array, labels: Array, valid: Array) -> Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(losses * valid) / jnp.maximum(jnp.sum(valid), 1)
