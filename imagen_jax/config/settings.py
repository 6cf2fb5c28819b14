"""The settings of a cascade as frozen dataclasses, with their defaults and what they mean."""

from __future__ import annotations

import dataclasses

CLEANINGS = ("none", "if")
SCHEDULES = ("cosine", "shifted_cosine", "linear")
TRAIN_LEVELS = ("schedule", "normal")
WEIGHTINGS = ("none", "min_snr", "sigmoid")
DRAWN_SOURCES = ("shapes", "emoji")
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
      schedule: of the log-SNR in sampling: "cosine", "shifted_cosine" or "linear".
      shift_resolution: for "shifted_cosine": the reference resolution d_ref; the log-SNR is moved
        by 2 log(d_ref / resolution).
      train_levels: noise levels of training examples: "schedule" (those of `schedule` at uniform
        times) or "normal" (a normal distribution of the log-SNR).
      logsnr_mean, logsnr_std: of "normal".
      prediction: "eps", "v" or "x".
      loss_weighting: "none", "min_snr" or "sigmoid".
      min_snr_gamma: gamma of "min_snr".
      min_snr_power: p of "min_snr": the error of x_hat counts min(SNR, gamma)^p times.
      sigmoid_bias: b of "sigmoid".
    """

    schedule: str = "cosine"
    shift_resolution: int = 64
    train_levels: str = "schedule"
    logsnr_mean: float = 0.0
    logsnr_std: float = 2.0
    prediction: str = "v"
    loss_weighting: str = "none"
    min_snr_gamma: float = 5.0
    min_snr_power: float = 1.0
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
      aspect_buckets: aspect ratios, width to height, such as ("1:1", "3:2", "2:3"). Each picture is
        cropped to the nearest, and every batch has one; with about as many pixels as the square of
        the stage's resolution. Empty: every picture is cropped to that square.
      min_side: a picture's shorter side is at least this many times the resolution of the stage
        (1: nothing is enlarged; 0: any). In a bucket: each side that of the bucket.
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
    aspect_buckets: tuple[str, ...] = ()
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
