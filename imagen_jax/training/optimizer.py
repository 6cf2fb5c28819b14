"""The learning rate and the optimizer of a run (Imagen App. F)."""

from __future__ import annotations

import optax

from imagen_jax.config import TrainConfig


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then constant, cosine to zero, or constant with a linear end.

    The paper's listings decay by a cosine over the whole run with `end_value=2500000`, an obvious
    slip for `decay_steps`; its text speaks of warm-up alone. Both readings are offered.

    With "linear" the length of a run can still be chosen while it trains: `num_steps` only moves
    the decay (warmup-stable-decay, Hu et al. 2024, arXiv:2404.06395).
    """
    peak, warmup = config.learning_rate, min(config.warmup_steps, config.num_steps)
    ramp = optax.linear_schedule(0.0, peak, max(warmup, 1))
    if config.lr_decay == "constant":
        after = optax.constant_schedule(peak)
    elif config.lr_decay == "linear":
        begin = max(config.num_steps - config.decay_steps - warmup, 0)
        after = optax.linear_schedule(peak, 0.0, config.decay_steps, transition_begin=begin)
    else:
        after = optax.cosine_decay_schedule(peak, max(config.num_steps - warmup, 1))
    if warmup == 0:
        return after
    # The first update already moves: step n (from 0) uses the rate of n + 1.
    return optax.join_schedules([lambda n: ramp(n + 1), after], [warmup])


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping by the global norm, then the optimizer that the config names."""
    update = config.optimizer.transformation(learning_rate(config), config.learning_rate)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
