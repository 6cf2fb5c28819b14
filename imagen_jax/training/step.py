"""One training step: a pure function of (state, batch, key).

The loop, the tests and every mesh use this same function. All randomness is drawn for the global
batch from `fold_in(key, step)`, so neither the mesh nor a restart changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from imagen_jax.diffusion.augmentation import low_res_condition
from imagen_jax.diffusion.losses import loss_per_example
from imagen_jax.diffusion.process import diffuse
from imagen_jax.diffusion.resize import downsample
from imagen_jax.models import apply_network, project_text
from imagen_jax.stage import Stage
from imagen_jax.training.state import TrainState
from imagen_jax.types import Array, Batch, Params, TextCond, drop_text, normalize_image, null_text

Metrics = dict[str, Array]

# Edges of the log-SNR buckets in which the loss is reported, from noise to clean.
LOGSNR_EDGES = (-6.0, -2.0, 2.0, 6.0)
BUCKETS = ("below_-6", "-6_to_-2", "-2_to_2", "2_to_6", "above_6")


def ema_decay(step: Array, maximum: float) -> Array:
    """min(maximum, (1 + n) / (10 + n)): short while the network still moves fast."""
    n = step.astype(jnp.float32)
    return jnp.minimum(maximum, (1.0 + n) / (10.0 + n))


def draw_times(key: Array, batch_size: int) -> Array:
    """`[B]` float32 times in [0, 1), each uniform, evenly spread over the batch.

    Differs from Imagen: the paper draws them independently; the shared offset (Kingma et al.,
    Variational Diffusion Models, App. I.1) keeps each uniform and lowers the variance of the loss.
    """
    spread = jnp.arange(batch_size, dtype=jnp.float32) / batch_size
    return (jax.random.uniform(key, ()) + spread) % 1.0


@flax.struct.dataclass
class Draws:
    """The random numbers in the loss of a batch, except those of dropout.

    Attributes:
      t: `[B]` float32 times in [0, 1).
      eps: `[B, H, W, C]` float32, the noise on the pictures.
      aug_level: `[B]` in [0, 1], and
      aug_eps: `[B, H / factor, W / factor, C]`, the noise of the low-resolution condition; both
        None in a base stage.
    """

    t: Array
    eps: Array
    aug_level: Array | None = None
    aug_eps: Array | None = None


def make_loss_of_draws(stage: Stage) -> Callable[..., tuple[Array, Array]]:
    """The loss of one batch at given times and noise.

    Returns:
      `loss(params, x, text, draws, dropout_key=None) -> (loss [B], logsnr [B])`, both float32,
      for `x` `[B, H, W, 3]` in [-1, 1]. Without a key nothing is dropped out.
    """
    level_at = stage.train_levels
    diffusion, network = stage.config.diffusion, stage.network

    def loss(
        params: Params, x: Array, text: TextCond, draws: Draws, dropout_key: Array | None = None
    ) -> tuple[Array, Array]:
        logsnr = level_at(draws.t)
        z = diffuse(x, draws.eps, logsnr)
        low_res = None
        if stage.factor:
            small = downsample(x, stage.factor)
            low_res = low_res_condition(small, stage.factor, draws.aug_level, draws.aug_eps)
        output = apply_network(
            network,
            params,
            z,
            logsnr,
            project_text(network, params, text),
            low_res=low_res,
            aug_level=draws.aug_level,
            dropout_key=dropout_key if stage.config.model.dropout else None,
        )
        per_example = loss_per_example(
            output, x, draws.eps, logsnr, diffusion.prediction, diffusion.loss_weighting
        )
        return per_example, logsnr

    return loss


def make_draws(stage: Stage) -> Callable[[Array, tuple[int, ...]], tuple[Draws, Array]]:
    """What is random in a training batch: `draws(key, shape [4] of x) -> (Draws, dropout key)`."""
    factor = stage.factor

    def draw(key: Array, shape: tuple[int, ...]) -> tuple[Draws, Array]:
        time_key, noise_key, aug_key, aug_noise_key, dropout_key = jax.random.split(key, 5)
        batch, height, width, channels = shape
        draws = Draws(t=draw_times(time_key, batch), eps=jax.random.normal(noise_key, shape))
        if factor:
            small = (batch, height // factor, width // factor, channels)
            draws = draws.replace(
                aug_level=jax.random.uniform(aug_key, (batch,)),
                aug_eps=jax.random.normal(aug_noise_key, small),
            )
        return draws, dropout_key

    return draw


def make_loss(stage: Stage) -> Callable[..., tuple[Array, Array]]:
    """The loss of one training batch.

    Returns:
      `loss(params, x, text, key) -> (loss [B], logsnr [B])`, both float32, for `x` `[B, H, W, 3]`
      in [-1, 1] and text that already has its null rows.
    """
    loss_of_draws = make_loss_of_draws(stage)
    draw = make_draws(stage)

    def loss(params: Params, x: Array, text: TextCond, key: Array) -> tuple[Array, Array]:
        draws, dropout_key = draw(key, x.shape)
        return loss_of_draws(params, x, text, draws, dropout_key)

    return loss


def make_gradient(stage: Stage) -> Callable[..., tuple[Any, ...]]:
    """The gradient of the mean loss of a batch, in `train.accumulate` parts one after the other.

    Everything random is drawn for the whole batch, so that the parts change nothing but the order
    of sums; dropout alone has a key for each part.

    Returns:
      `gradient(params, image [B, H, W, 3] uint8, text, key) -> (grads, loss [B], logsnr [B])`, the
      rows of the last two in an order of their own.
    """
    loss_of_draws = make_loss_of_draws(stage)
    draw = make_draws(stage)
    parts = stage.config.train.accumulate

    def gradient(params: Params, image: Array, text: TextCond, key: Array):
        draws, dropout_key = draw(key, image.shape)

        def part_gradient(image, text, draws, dropout_key):
            def mean_loss(params: Params) -> tuple[Array, tuple[Array, Array]]:
                x = normalize_image(image)
                per_example, logsnr = loss_of_draws(params, x, text, draws, dropout_key)
                return per_example.mean(), (per_example, logsnr)

            return jax.grad(mean_loss, has_aux=True)(params)

        if parts == 1:
            grads, (per_example, logsnr) = part_gradient(image, text, draws, dropout_key)
            return grads, per_example, logsnr

        def split(leaf: Array) -> Array:
            # Interleaved: each device has rows of every part, so that nothing is sent around.
            leaf = leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:])
            return leaf.swapaxes(0, 1)

        def add(total: Params, part: tuple[Any, ...]) -> tuple[Params, tuple[Array, Array]]:
            *inputs, number = part
            grads, aux = part_gradient(*inputs, jax.random.fold_in(dropout_key, number))
            return jax.tree.map(jnp.add, total, grads), aux

        inputs = jax.tree.map(split, (image, text, draws))
        zeros = jax.tree.map(jnp.zeros_like, params)
        total, (per_example, logsnr) = jax.lax.scan(add, zeros, (*inputs, jnp.arange(parts)))
        grads = jax.tree.map(lambda leaf: leaf / parts, total)
        return grads, per_example.reshape(-1), logsnr.reshape(-1)

    return gradient


def make_train_step(
    stage: Stage, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """The step `(state, batch, key) -> (state, metrics)`; not yet jitted.

    Metrics are float32: "loss", "grad_norm", and "bucket_loss" / "bucket_count" `[5]`, the sums
    of the loss and the numbers of examples in the log-SNR intervals of `LOGSNR_EDGES`; and the
    bool "skipped": the loss or the norm of its gradient was not finite. Of the state, such a step
    changes its number alone.
    """
    gradient = make_gradient(stage)
    train = stage.config.train

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        drop_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        drop = jax.random.bernoulli(drop_key, train.text_drop_rate, (batch.image.shape[0],))
        text = drop_text(batch.text, drop)
        grads, per_example, logsnr = gradient(state.params, batch.image, text, loss_key)
        loss = per_example.mean()
        # The norm is finite only if every gradient is.
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        def update() -> tuple[Params, Params, Any]:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            decay = ema_decay(state.step, train.ema_max)
            ema_params = jax.tree.map(
                lambda ema, new: ema + (1.0 - decay) * (new - ema), state.ema_params, params
            )
            return params, ema_params, opt_state

        # A branch: to choose between new and old values afterwards costs another pass over them.
        params, ema_params, opt_state = jax.lax.cond(
            finite, update, lambda: (state.params, state.ema_params, state.opt_state)
        )
        bucket_loss, bucket_count = bucket_sums(per_example, logsnr)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "bucket_loss": bucket_loss,
            "bucket_count": bucket_count,
            "skipped": ~finite,
        }
        new_state = TrainState(
            step=state.step + 1, params=params, ema_params=ema_params, opt_state=opt_state
        )
        return new_state, metrics

    return step


def make_condition_gap(stage: Stage) -> Callable[[Params, Batch, Array], Array]:
    """`gap(params, batch, key)`: loss with the captions minus loss with the null text.

    Both see the same times and noise. It is zero while the network ignores its text and negative
    once it uses it, long before samples show it.
    """
    loss_of = make_loss(stage)

    def gap(params: Params, batch: Batch, key: Array) -> Array:
        x = normalize_image(batch.image)
        texts = jax.tree.map(lambda *leaves: jnp.stack(leaves), batch.text, null_text(batch.text))
        # A loop over the two: half the program and half the memory of two calls.
        conditional, unconditional = jax.lax.map(
            lambda text: loss_of(params, x, text, key)[0].mean(), texts
        )
        return conditional - unconditional

    return gap


def bucket_sums(
    per_example: Array, logsnr: Array, weight: Array | None = None
) -> tuple[Array, Array]:
    """Sums `[5]` of the losses `[B]` and numbers `[5]` of examples by log-SNR interval.

    `weight` `[B]` is 0 for rows that only fill the batch, else 1.
    """
    bucket = jnp.searchsorted(jnp.array(LOGSNR_EDGES), logsnr)
    in_bucket = jax.nn.one_hot(bucket, len(BUCKETS))
    if weight is not None:
        in_bucket *= weight[:, None]
    return per_example @ in_bucket, in_bucket.sum(0)


def bucket_means(metrics: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean loss by log-SNR bucket name, buckets that no example fell into left out."""
    counts, sums = np.asarray(metrics["bucket_count"]), np.asarray(metrics["bucket_loss"])
    return {
        name: float(total / count)
        for name, total, count in zip(BUCKETS, sums, counts, strict=True)
        if count > 0
    }
