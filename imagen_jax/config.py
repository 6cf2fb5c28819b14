"""Configuration: `configs/*.py` (ml_collections) to validated frozen dataclasses.

A config file's `get_config()` returns `to_config_dict(CascadeConfig(...))`, so every field has a
default here, every key can be overridden on the command line (`--config.stages.base.train.x=y`)
and `from_config_dict` checks names, types and ranges before any program is compiled. This module
imports neither jax nor ml_collections at import time.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any

from imagen_jax.errors import UserError

CLEANINGS = ("none", "if")
SCHEDULES = ("cosine", "shifted_cosine", "linear")
WEIGHTINGS = ("none", "min_snr", "sigmoid")
SOURCES = (
    "shapes",
    "emoji",
    "folder",
    "webdataset",
    "parquet",
    "arrow",
    "tfds",
    "array_record",
    "mix",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A U-Net of one stage; tuples have one entry per level, highest resolution first.

    Attributes:
      kind: "unet" (the base U-Net of App. F.1: `biggan` blocks, attention after every residual
        block of a level that has it, levels joined by residual down- and up-sampling blocks) or
        "efficient_unet" (App. B: each level down-samples before its blocks and up-samples after
        them, attention once a level after its blocks).
      channels: width of each level.
      num_res_blocks: residual blocks of each level on the way down. On the way up "unet" has one
        more (ADM), "efficient_unet" the same number.
      strides: "efficient_unet" only: down-sampling factor at the start of each level, 1 or 2.
      self_attention: whether the level attends over its pixels.
      text_attention: "none"; "joint" (text keys and values are concatenated to those of the
        level's self-attention); "cross" (a cross-attention of its own).
      head_dim: channels per attention head.
      attention_expansion: attention width over the level's channels (1 in the base, 2 in Fig.
        A.28).
      stem_channels: width of the first convolution of an "efficient_unet" (0: the first level's).
      patch_size: patches of this many pixels a side are folded into channels before the network and
        unfolded after it, so that nothing runs at full resolution (1: off, as in the paper).
      input_skip: add the noisy picture (and the low-resolution condition) to the network's answer,
        with gains that depend on the noise level and start at 0 (off in the paper).
      embed_dim: width of the time and pooled-text embedding (0: 4 x the first width).
      dropout: rate inside residual blocks.
      dtype: compute dtype, "float32" or "bfloat16"; parameters are always float32.
      remat: what the backward pass computes again instead of keeping it, one entry a level:
        "none", "full" (everything between the inputs of two blocks) or "convs" (the norms and
        activations; the results of convolutions and attention are kept). Empty: "full" with
        `scan_blocks`, else "none".
      scan_blocks: run equal consecutive blocks as a scan (faster compilation) instead of unrolled.
        The parameters and the result are the same. Not for CPUs, on which the gradient of a
        convolution inside a loop is ten times slower.
    """

    kind: str = "efficient_unet"
    channels: tuple[int, ...] = (64, 128, 256)
    num_res_blocks: tuple[int, ...] = (2, 2, 2)
    strides: tuple[int, ...] = (2, 2, 2)
    self_attention: tuple[bool, ...] = (False, True, True)
    text_attention: tuple[str, ...] = ("none", "joint", "joint")
    head_dim: int = 64
    attention_expansion: int = 1
    stem_channels: int = 0
    patch_size: int = 1
    input_skip: bool = False
    embed_dim: int = 0
    dropout: float = 0.0
    dtype: str = "float32"
    remat: tuple[str, ...] = ()
    scan_blocks: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """What is diffused and what the network predicts.

    Attributes:
      schedule: "cosine", "shifted_cosine" or "linear" log-SNR.
      shift_resolution: for "shifted_cosine": the reference resolution d_ref; the log-SNR is moved
        by 2 log(d_ref / resolution).
      prediction: "eps", "v" or "x".
      loss_weighting: "none", "min_snr" or "sigmoid".
      min_snr_gamma: gamma of "min_snr".
      sigmoid_bias: b of "sigmoid".
    """

    schedule: str = "cosine"
    shift_resolution: int = 64
    prediction: str = "v"
    loss_weighting: str = "none"
    min_snr_gamma: float = 5.0
    sigmoid_bias: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How one stage is trained. Intervals are in steps.

    Attributes:
      batch_size: images a step over all devices.
      accumulate: parts into which the batch is cut; their gradients are computed one after the
        other and averaged, with the result of the whole batch and the memory of a part. Not for
        CPUs: the parts are a loop, see `ModelConfig.scan_blocks`.
      num_steps: length of the run; also the end of a cosine learning-rate decay.
      optimizer: "adam", "adafactor" or "muon" (for hidden kernels, with Adam for the rest).
      learning_rate: the peak, reached after `warmup_steps` of linear warm-up.
      muon_learning_rate: the peak for what Muon updates; it warms up and decays as the other.
      lr_decay: after warm-up: "constant" or "cosine" (to 0 at `num_steps`).
      adam_b2: second-moment decay of Adam.
      adafactor_parameter_scale: multiply updates by the parameter's RMS (on in the paper's
        optax defaults; off in ours, see docs).
      clip_norm: global gradient norm limit.
      ema_max: the EMA decay is min(ema_max, (1 + n) / (10 + n)) after n steps.
      text_drop_rate: share of captions replaced by the null text.
      crop_size: train on random crops of this size (0: whole pictures); super-resolution only.
      max_skipped_steps: a step whose loss or gradient is not finite changes no weights; after
        this many in a row the run stops.
      log_every, preview_every, save_every: intervals of scalars, picture grids, checkpoints.
      keep_checkpoints: the newest checkpoints kept.
      validate_every: interval of the loss on held-out pictures (0: never).
      validation_images: how many of them, at most.
    """

    batch_size: int = 32
    accumulate: int = 1
    num_steps: int = 10_000
    optimizer: str = "adam"
    learning_rate: float = 1e-4
    muon_learning_rate: float = 0.02
    warmup_steps: int = 10_000
    lr_decay: str = "cosine"
    adam_b2: float = 0.999
    adafactor_parameter_scale: bool = False
    clip_norm: float = 1.0
    ema_max: float = 0.9999
    text_drop_rate: float = 0.1
    crop_size: int = 0
    max_skipped_steps: int = 20
    log_every: int = 50
    preview_every: int = 1000
    save_every: int = 1000
    keep_checkpoints: int = 3
    validate_every: int = 1000
    validation_images: int = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Defaults of sampling from one stage.

    Attributes:
      sampler: "ddim" or "ancestral".
      num_steps: network evaluations per picture (each guided one is a conditional and an
        unconditional pass).
      guidance_weight: w of Imagen eq. 2; 1 is no guidance.
      threshold: "none", "static" or "dynamic".
      percentile: p of dynamic thresholding in percent, in (1, 100].
      threshold_cap: upper bound of the dynamic threshold s (0: none).
      eta: DDIM noise, 0 is deterministic.
      gamma: interpolation of the ancestral variance (eq. 6), in [0, 1].
      aug_level: noise level of the low-resolution condition, in [0, 1]; super-resolution only.
    """

    sampler: str = "ddim"
    num_steps: int = 64
    guidance_weight: float = 3.0
    threshold: str = "dynamic"
    percentile: float = 99.5
    threshold_cap: float = 0.0
    eta: float = 0.0
    gamma: float = 0.2
    aug_level: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One diffusion model of the cascade.

    Attributes:
      resolution: side of the square picture that the stage draws.
      low_resolution: side of the picture that it is conditioned on; 0 for the base stage.
    """

    resolution: int = 64
    low_resolution: int = 0
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The frozen text encoder.

    Attributes:
      encoder: "embedded" (the small T5 that ships with the package), the path of a Hugging Face
        directory of a T5 or of a CLIP, or the id of one on the hub ("google/t5-v1_1-xl").
      max_length: tokens a caption is cut to, end-of-sequence included.
      cleaning: what is done to captions first: "none", or "if" (as for the DeepFloyd IF weights).
    """

    encoder: str = "embedded"
    max_length: int = 128
    cleaning: str = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One set of pictures with captions; docs/data.md shows each format.

    Attributes:
      source: "shapes", "emoji", "folder", "webdataset", "parquet", "arrow" (what Hugging Face
        datasets save to disk), "tfds" or "array_record" (what prepare_data writes); for DataConfig
        also "mix".
      path: where it lies (empty for "emoji": search the usual places for the font).
      split: "tfds", "parquet" and "arrow": the stored split that is read.
      image_field: the column or file extension of the pictures (empty: the usual names).
      caption_fields: the columns or JSON keys of the captions, `captions/text` for one in a group
        (empty: the usual names). An image may have several captions; one is drawn each time.
      score_field: the column or JSON key of a number for `min_score` (empty: none).
    """

    source: str = "shapes"
    path: str = ""
    split: str = "train"
    image_field: str = ""
    caption_fields: tuple[str, ...] = ()
    score_field: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixConfig(SourceConfig):
    """A part of a mix.

    Attributes:
      weight: its share of the examples, relative to the others'.
    """

    weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig):
    """Where pictures and captions come from, and which are wanted.

    Attributes:
      mix: the parts of the source "mix", by name.
      min_side: a picture's shorter side is at least this many times the resolution of the stage
        (1: nothing is enlarged; 0: any).
      max_aspect: longer over shorter side, at most (0: any).
      min_caption_length, max_caption_length: characters; captions outside are not drawn, and a
        picture is left out if none remains (0: any).
      min_score: the least `score_field`; pictures without one are left out.
      max_bad_share: a run stops when a greater share of the pictures cannot be read.
      embeddings: directory of stored text embeddings (python -m imagen_jax.cli.encode_text); empty:
        the encoder runs beside the training step.
      flip: random horizontal flips. Never for pictures whose caption says left or right.
      num_threads: reading threads of each process or worker.
      num_workers: processes that read ahead, beside each training process (0: it reads itself,
        in threads). For accelerators that are faster than one core can draw or decode.
    """

    mix: dict[str, MixConfig] = dataclasses.field(default_factory=dict)
    min_side: float = 0.0
    max_aspect: float = 0.0
    min_caption_length: int = 0
    max_caption_length: int = 0
    min_score: float = 0.0
    max_bad_share: float = 0.1
    embeddings: str = ""
    flip: bool = False
    num_threads: int = 2
    num_workers: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes what is left over.

    Attributes:
      data: whole copies of the state; each computes its own part of the batch.
      fsdp: parts into which a copy of the state is cut, and the batch with it. 0: as many as it
        takes until a part fits into a quarter of a device's memory.
      tensor: parts into which the products of attention are cut, beside that.
    """

    data: int = -1
    fsdp: int = 0
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """A cascade: what it learns from and its stages by name."""

    name: str = ""
    seed: int = 0
    text: TextConfig = TextConfig()
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    stages: dict[str, StageConfig] = dataclasses.field(default_factory=dict)

    def ordered_stages(self) -> dict[str, StageConfig]:
        """The stages from the lowest resolution to the highest."""
        return dict(sorted(self.stages.items(), key=lambda item: item[1].resolution))


# --- conversion -------------------------------------------------------------------------------


def to_json_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as nested plain dicts and lists, ready for `json.dump`."""
    return _jsonable(dataclasses.asdict(config))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_jsonable(item) for item in value]
    return value


def to_config_dict(config: CascadeConfig):
    """The same tree as an `ml_collections.ConfigDict`, for `get_config()` of a config file."""
    import ml_collections

    return ml_collections.ConfigDict(dataclasses.asdict(config))


def from_config_dict(config) -> CascadeConfig:
    """Validates an `ml_collections.ConfigDict`. Raises UserError, see `from_json_dict`."""
    return from_json_dict(config.to_dict())


def from_json_dict(values: Mapping[str, Any]) -> CascadeConfig:
    """Builds and validates a `CascadeConfig` from nested mappings.

    Raises:
      UserError: an unknown key (the nearest valid one is named), a value of the wrong type, a
        value out of range, or settings that contradict each other.
    """
    config = _build(CascadeConfig, values, "config")
    validate(config)
    return config


def load_config(path: str) -> CascadeConfig:
    """Runs the `get_config()` of a config file and validates what it returns."""
    import os
    import runpy

    if not os.path.isfile(path):
        raise UserError(f"config file {path!r} does not exist")
    namespace = runpy.run_path(path)
    if "get_config" not in namespace:
        raise UserError(f"config file {path!r} defines no get_config()")
    return from_config_dict(namespace["get_config"]())


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested config values by dotted path, for comparing two configs."""
    values = to_json_dict(config) if dataclasses.is_dataclass(config) else config
    flat = {}
    for key, value in values.items():
        path = f"{prefix}.{key}" if prefix else key
        flat.update(flatten(value, path) if isinstance(value, dict) else {path: value})
    return flat


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"{path} must be a group of settings, not {values!r}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)[0]
            raise UserError(f"unknown config key {path}.{key}; did you mean {path}.{near}?")
    return cls(**{key: _convert(hints[key], v, f"{path}.{key}") for key, v in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{path} must be a group of named settings, not {value!r}")
        return {k: _convert(arguments[1], v, f"{path}.{k}") for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{path} must be a tuple, not {value!r}")
        return tuple(_convert(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{path} must be of type {hint.__name__}, not {value!r}")
    return value


# --- validation -------------------------------------------------------------------------------


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
