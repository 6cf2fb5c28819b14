"""Pretraining of the embedded encoder: denoising auto-encoding through a bottleneck.

Span corruption alone teaches little on templates: which colour stands before "circle" cannot be
guessed from the rest, so nothing makes the states carry it. Here a small throw-away decoder writes
the target text word by word and sees of the source only the *mean* of its encoder states (of half
of them, in half of the rows). So each state must say what it says in its context: which object a
colour belongs to, which side of a relation a noun is on. A masked-token loss (BERT, Devlin et al.
2019) on the same pass teaches the usual neighbours of words.
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

from imagen_jax.text.corpus import Corpus
from imagen_jax.text.t5 import Block, RMSNorm, T5Config, T5Encoder, relative_buckets
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.types import Array, Params

MASK_ID = 2  # The unknown token: with byte fallback no text contains it.


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How the encoder is trained; `length` is that of the source and of the target."""

    num_steps: int = 3000
    batch_size: int = 64
    length: int = 24
    learning_rate: float = 2e-3
    mask_rate: float = 0.15
    seed: int = 0


class Decoder(nn.Module):
    """One causal block that writes a text from one vector."""

    config: T5Config

    @nn.compact
    def __call__(self, ids: Array, pooled: Array) -> Array:
        """ids `[B, L]` shifted right, pooled `[B, D]`; returns `[B, L, D]`."""
        c = self.config
        table = self.param("embedding", nn.initializers.normal(1.0), (c.vocab_size, c.d_model))
        x = table[ids] + nn.Dense(c.d_model, name="pooled")(pooled)[:, None, :]
        length = ids.shape[1]
        relative = self.param("relative_bias", nn.initializers.normal(1.0), (32, c.num_heads))
        bias = jnp.transpose(relative[relative_buckets(length, 32, 64)], (2, 0, 1))
        future = np.triu(np.full((length, length), -1e9, np.float32), 1)
        x, _ = Block(c, name="block")(x, bias + future[None], jnp.ones(ids.shape, bool))
        return RMSNorm(c.eps, name="norm")(x)


class Pretraining(nn.Module):
    """Encoder, decoder and the masked-token head; returns the loss and its parts."""

    config: T5Config

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        c = self.config
        states = T5Encoder(c, name="encoder")(batch["ids"], batch["mask"])
        weights = (batch["mask"] & batch["pool"]).astype(jnp.float32)[:, :, None]
        pooled = jnp.sum(states * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1.0)
        shifted = jnp.pad(batch["target"][:, :-1], ((0, 0), (1, 0)))
        written = Decoder(c, name="decoder")(shifted, pooled)
        output = nn.Dense(c.vocab_size, use_bias=False, name="output")
        write_loss = _cross_entropy(output(written), batch["target"], batch["target_mask"])
        # Only some positions are masked: the logits of the first few are enough.
        rows = jnp.arange(states.shape[0])[:, None]
        guessed = nn.Dense(c.d_model, name="guess")(states[rows, batch["masked_at"]])
        truth = batch["original"][rows, batch["masked_at"]]
        mask_loss = _cross_entropy(output(guessed), truth, batch["masked_valid"])
        return write_loss + 0.3 * mask_loss, {"write": write_loss, "mask": mask_loss}


def pretrain(
    config: T5Config,
    tokenizer: Tokenizer,
    corpus: Corpus,
    settings: PretrainConfig,
    report: Callable[[str], None],
) -> Params:
    """Trains from scratch and returns the encoder's parameters.

    The same arguments give the same batches; on one kind of machine also the same parameters.
    """
    model = Pretraining(config)
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

    start = time.monotonic()
    for i in range(settings.num_steps):
        params, state, parts = step(params, state, first if i == 0 else next(stream))
        if (i + 1) % 50 == 0 or i + 1 == settings.num_steps:
            spent = time.monotonic() - start
            left = spent / (i + 1) * (settings.num_steps - i - 1)
            losses = ", ".join(f"{name} {float(value):.3f}" for name, value in parts.items())
            report(f"step {i + 1}/{settings.num_steps}: {losses} ({spent:.0f} s, {left:.0f} left)")
    return params["encoder"]


def batches(
    tokenizer: Tokenizer, corpus: Corpus, settings: PretrainConfig
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, a function of `settings.seed`."""
    rng = random.Random(settings.seed)
    noise = np.random.default_rng(settings.seed)
    num_masked = max(1, settings.length // 5)
    while True:
        pairs = [corpus.draw(rng) for _ in range(settings.batch_size)]
        original, mask = tokenizer([source for source, _ in pairs], settings.length)
        target, target_mask = tokenizer([target for _, target in pairs], settings.length)
        # Every second row is corrupted; of other pairs of rows every second is half pooled.
        corrupted = (np.arange(settings.batch_size) % 2 == 0)[:, None]
        masked = corrupted & mask & (noise.random(mask.shape) < settings.mask_rate)
        halved = (np.arange(settings.batch_size) % 4 < 2)[:, None]
        pool = ~halved | (noise.random(mask.shape) < 0.5)
        # Positions of the masked tokens first, in a fixed number of slots.
        order = np.argsort(~masked, axis=1, kind="stable")[:, :num_masked]
        yield {
            "ids": np.where(masked, MASK_ID, original).astype(np.int32),
            "mask": mask,
            "pool": pool,
            "original": original,
            "target": target,
            "target_mask": target_mask,
            "masked_at": order.astype(np.int32),
            "masked_valid": np.take_along_axis(masked, order, axis=1),
        }


def _cross_entropy(logits: Array, labels: Array, valid: Array) -> Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(losses * valid) / jnp.maximum(jnp.sum(valid), 1)
