"""Checks of the settings' ranges, and that they do not contradict each other."""

from __future__ import annotations

from imagen_jax.config.buckets import stage_shapes
from imagen_jax.config.settings import (
    CLEANINGS,
    DRAWN_SOURCES,
    SCHEDULES,
    SOURCES,
    TRAIN_LEVELS,
    WEIGHTINGS,
    CascadeConfig,
    DataConfig,
    SampleConfig,
    StageConfig,
)
from imagen_jax.errors import UserError


def validate(config: CascadeConfig) -> None:
    """Checks ranges and that the stages form a cascade. Raises UserError."""
    _validate_data(config.data)
    _at_least("config.text.max_length", config.text.max_length, 2)
    _choice("config.text.cleaning", config.text.cleaning, CLEANINGS)
    if not config.stages:
        raise UserError("config.stages is empty: a cascade needs at least one stage")
    previous = 0
    for name, stage in config.ordered_stages().items():
        path = f"config.stages.{name}"
        _validate_stage(path, stage)
        if stage.low_resolution != previous:
            raise UserError(
                f"{path}.low_resolution is {stage.low_resolution}, but the stage before it draws "
                f"{previous} (0: there is none); the stages must chain"
            )
        previous = stage.resolution
    if config.data.aspect_buckets:
        _validate_buckets(config)


def _validate_buckets(config: CascadeConfig) -> None:
    data = config.data
    sources = {"source": data.source}
    sources |= {f"mix.{name}.source": part.source for name, part in data.mix.items()}
    for path, source in sources.items():
        if source in DRAWN_SOURCES:
            raise UserError(
                f"config.data.aspect_buckets with config.data.{path}={source!r}: its pictures are "
                "drawn, and all are square; set config.data.aspect_buckets=()"
            )
    for name, stage in config.stages.items():
        for aspect, shape in stage_shapes(config, name).items():
            if stage.train.crop_size > min(shape):
                raise UserError(
                    f"config.stages.{name}.train.crop_size={stage.train.crop_size} is larger than "
                    f"the {aspect} pictures of config.data.aspect_buckets, which are "
                    f"{shape[1]}x{shape[0]}: crop at most {min(shape)}"
                )


def _validate_data(data: DataConfig) -> None:
    _choice("config.data.source", data.source, SOURCES)
    _at_least("config.data.num_threads", data.num_threads, 1)
    for field in ("num_workers", "min_side", "min_caption_length", "max_caption_length"):
        _at_least(f"config.data.{field}", getattr(data, field), 0)
    _unit_interval("config.data.max_bad_share", data.max_bad_share)
    if data.max_aspect and data.max_aspect < 1:
        raise UserError(
            f"config.data.max_aspect={data.max_aspect} must be 0 (any) or at least 1: it is the "
            "longer side over the shorter"
        )
    if (data.source == "mix") != bool(data.mix):
        raise UserError(
            f"config.data.source={data.source!r} with {len(data.mix)} parts in config.data.mix: "
            'source "mix" takes its pictures from there, the others do not'
        )
    for name, part in data.mix.items():
        path = f"config.data.mix.{name}"
        # Endless drawings have no epochs that could be mixed with those of a set.
        _choice(
            f"{path}.source", part.source, tuple(s for s in SOURCES if s not in ("mix", "shapes"))
        )
        if not part.weight > 0:
            raise UserError(f"{path}.weight={part.weight} must be positive")


def _validate_stage(path: str, stage: StageConfig) -> None:
    model, train, sample = stage.model, stage.train, stage.sample
    _at_least(f"{path}.resolution", stage.resolution, 1)
    if stage.low_resolution and stage.resolution % stage.low_resolution:
        raise UserError(
            f"{path}.resolution={stage.resolution} must be a multiple of "
            f"low_resolution={stage.low_resolution}"
        )
    _choice(f"{path}.model.kind", model.kind, ("unet", "efficient_unet"))
    _choice(f"{path}.model.dtype", model.dtype, ("float32", "bfloat16"))
    _choice(f"{path}.diffusion.schedule", stage.diffusion.schedule, SCHEDULES)
    _choice(f"{path}.diffusion.prediction", stage.diffusion.prediction, ("eps", "v", "x"))
    _choice(f"{path}.diffusion.loss_weighting", stage.diffusion.loss_weighting, WEIGHTINGS)
    diffusion = stage.diffusion
    _choice(f"{path}.diffusion.train_levels", diffusion.train_levels, TRAIN_LEVELS)
    for field in ("shift_resolution", "logsnr_std", "min_snr_gamma"):
        if not getattr(diffusion, field) > 0:
            raise UserError(
                f"{path}.diffusion.{field} must be positive, not {getattr(diffusion, field)}"
            )
    if not abs(diffusion.logsnr_mean) < 20.0:
        raise UserError(
            f"{path}.diffusion.logsnr_mean={diffusion.logsnr_mean} must lie between -20 and 20"
        )
    if not 0.0 <= diffusion.min_snr_power <= 1.0:
        raise UserError(
            f"{path}.diffusion.min_snr_power={diffusion.min_snr_power} must lie in [0, 1]"
        )
    for level in model.remat:
        _choice(f"{path}.model.remat", level, ("none", "full", "convs"))
    if model.remat and len(model.remat) != len(model.channels):
        raise UserError(
            f"{path}.model.remat={model.remat} has {len(model.remat)} entries, model.channels="
            f"{model.channels} has {len(model.channels)}: give one entry per level, or none"
        )
    for field in (
        "batch_size",
        "accumulate",
        "num_steps",
        "log_every",
        "preview_every",
        "save_every",
    ):
        _at_least(f"{path}.train.{field}", getattr(train, field), 1)
    if train.batch_size % train.accumulate:
        raise UserError(
            f"{path}.train.batch_size={train.batch_size} does not divide into "
            f"train.accumulate={train.accumulate} parts"
        )
    for field in ("keep_checkpoints", "max_skipped_steps", "validation_images"):
        _at_least(f"{path}.train.{field}", getattr(train, field), 1)
    for field in ("warmup_steps", "validate_every"):
        _at_least(f"{path}.train.{field}", getattr(train, field), 0)
    _choice(f"{path}.train.optimizer", train.optimizer, ("adam", "adafactor", "muon"))
    _choice(f"{path}.train.lr_decay", train.lr_decay, ("constant", "cosine"))
    for field in ("learning_rate", "muon_learning_rate", "clip_norm"):
        if not getattr(train, field) > 0:
            raise UserError(f"{path}.train.{field} must be positive, not {getattr(train, field)}")
    for field in ("text_drop_rate", "ema_max", "adam_b2"):
        _unit_interval(f"{path}.train.{field}", getattr(train, field))
    _unit_interval(f"{path}.model.dropout", model.dropout)
    if train.crop_size:
        if not stage.low_resolution:
            raise UserError(f"{path}.train.crop_size is for super-resolution stages only")
        factor = stage.resolution // stage.low_resolution
        if train.crop_size % factor or not 0 < train.crop_size <= stage.resolution:
            raise UserError(
                f"{path}.train.crop_size={train.crop_size} must be a multiple of the up-scaling "
                f"factor {factor} and at most the resolution {stage.resolution}"
            )
    validate_sample(f"{path}.sample", sample)


def validate_sample(path: str, sample: SampleConfig) -> None:
    """Checks the sampling settings found at `path`. Raises UserError."""
    _choice(f"{path}.sampler", sample.sampler, ("ddim", "ancestral"))
    _choice(f"{path}.threshold", sample.threshold, ("none", "static", "dynamic"))
    _at_least(f"{path}.num_steps", sample.num_steps, 1)
    if not 1.0 < sample.percentile <= 100.0:
        raise UserError(
            f"{path}.percentile={sample.percentile} must be in (1, 100]: it is in percent, "
            f"so the paper's value is 99.5, not 0.995"
        )
    for field in ("eta", "gamma", "aug_level"):
        _unit_interval(f"{path}.{field}", getattr(sample, field))
    if sample.threshold_cap and sample.threshold_cap < 1.0:
        raise UserError(f"{path}.threshold_cap={sample.threshold_cap} must be 0 (none) or >= 1")


def _choice(path: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{path}={value!r} must be one of {', '.join(choices)}")


def _at_least(path: str, value: float, least: float) -> None:
    if value < least:
        raise UserError(f"{path}={value} must be at least {least}")


def _unit_interval(path: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{path}={value} must be in [0, 1]")
