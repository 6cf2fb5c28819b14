"""Settings of one stage: its network, its diffusion, its training and its sampling.

A setting with several kinds (`sampler`, `optimizer`, ...) is a dataclass of its own, defined beside
what it does; in files it is a group with a `kind`.
"""

from __future__ import annotations

import dataclasses
from typing import Union

from imagen_jax.checks import (
    check_at_least,
    check_choice,
    check_positive,
    check_unit_interval,
)
from imagen_jax.diffusion.grids import GRIDS, UniformGrid, check_num_steps
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.losses import WEIGHTINGS, Unweighted
from imagen_jax.diffusion.process import check_prediction
from imagen_jax.diffusion.samplers import DDIM, SAMPLERS
from imagen_jax.diffusion.schedules import SCHEDULES, TRAIN_LEVELS, Cosine, ScheduleLevels
from imagen_jax.diffusion.thresholding import THRESHOLDS, DynamicThreshold
from imagen_jax.errors import UserError
from imagen_jax.models import NETWORKS, EfficientUNetConfig
from imagen_jax.optimizers import OPTIMIZERS, Adam

# The lists are the only places that name all kinds of a choice.
Network = Union[NETWORKS]
Schedule = Union[SCHEDULES]
TrainLevels = Union[TRAIN_LEVELS]
Weighting = Union[WEIGHTINGS]
Optimizer = Union[OPTIMIZERS]
Sampler = Union[SAMPLERS]
Grid = Union[GRIDS]
Threshold = Union[THRESHOLDS]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The diffusion process and what the network predicts.

    Attributes:
      prediction: "eps", "v" or "x".
      schedule: of the log-SNR in sampling: `Cosine`, `ShiftedCosine` or `Linear`.
      train_levels: noise levels of training examples: `ScheduleLevels` or `NormalLevels`.
      loss_weighting: `Unweighted`, `MinSNR` or `Sigmoid`.

    Raises:
      UserError: unknown prediction type.
    """

    prediction: str = "v"
    schedule: Schedule = Cosine()
    train_levels: TrainLevels = ScheduleLevels()
    loss_weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        check_prediction(self.prediction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How one stage is trained. Intervals are in steps.

    Attributes:
      batch_size: images a step over all devices.
      accumulate: parts into which the batch is cut; their gradients are computed one after the
        other and averaged, with the result of the whole batch and the memory of a part. Not for
        CPUs: the parts are a loop, see `NetworkConfig.scan_blocks`.
      num_steps: length of the run; also the end of a cosine learning-rate decay.
      optimizer: `Adam`, `Adafactor` or `Muon`.
      learning_rate: the peak, reached after `warmup_steps` of linear warm-up.
      lr_decay: after warm-up: "constant", "cosine" (to 0 at `num_steps`) or "linear" (constant,
        then to 0 over the last `decay_steps`).
      decay_steps: of the "linear" decay.
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

    Raises:
      UserError: a value out of range.
    """

    batch_size: int = 32
    accumulate: int = 1
    num_steps: int = 10_000
    optimizer: Optimizer = Adam()
    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    lr_decay: str = "cosine"
    decay_steps: int = 0
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

    def __post_init__(self) -> None:
        for field in (
            "batch_size",
            "accumulate",
            "num_steps",
            "log_every",
            "preview_every",
            "save_every",
            "keep_checkpoints",
            "max_skipped_steps",
            "validation_images",
        ):
            check_at_least(field, getattr(self, field), 1)
        for field in ("warmup_steps", "validate_every", "crop_size", "decay_steps"):
            check_at_least(field, getattr(self, field), 0)
        if (self.lr_decay == "linear") != bool(self.decay_steps):
            raise UserError(
                f"lr_decay={self.lr_decay!r} with decay_steps={self.decay_steps}: the linear "
                "decay, and no other, needs a number of steps"
            )
        if self.batch_size % self.accumulate:
            raise UserError(
                f"batch_size={self.batch_size} does not divide into accumulate={self.accumulate} "
                "parts"
            )
        check_choice("lr_decay", self.lr_decay, ("constant", "cosine", "linear"))
        for field in ("learning_rate", "clip_norm"):
            check_positive(field, getattr(self, field))
        for field in ("text_drop_rate", "ema_max"):
            check_unit_interval(field, getattr(self, field))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Defaults of sampling from one stage.

    Attributes:
      sampler: `DDIM`, `Ancestral`, `DPMSolver`, `SDEDPMSolver`, `Heun`, `Euler` or `UniPC`.
      num_steps: steps of the sampler, at least as many as its order needs; a step of some samplers
        calls the network several times.
      grid: noise levels of the steps: `UniformGrid`, `LogSNRGrid`, `KarrasGrid` or `ExplicitGrid`.
      guidance: its weight (1 is no guidance), where it acts and how; see `Guidance`.
      threshold: `NoThreshold`, `StaticThreshold` or `DynamicThreshold`.
      aug_level: noise level of the low-resolution condition, in [0, 1]; super-resolution only.

    Raises:
      UserError: a value out of range.
    """

    sampler: Sampler = DDIM()
    num_steps: int = 64
    guidance: Guidance = Guidance()
    threshold: Threshold = DynamicThreshold()
    aug_level: float = 0.1
    grid: Grid = UniformGrid()  # noqa: RUF009

    def __post_init__(self) -> None:
        check_at_least("num_steps", self.num_steps, 1)
        if self.num_steps < self.sampler.min_steps:
            raise UserError(
                f"num_steps={self.num_steps} is too few for the sampler {self.sampler.kind!r} of "
                f"order {self.sampler.min_steps}; take at least {self.sampler.min_steps}"
            )
        check_num_steps(self.grid, self.num_steps)
        check_unit_interval("aug_level", self.aug_level)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One diffusion model of the cascade.

    Attributes:
      resolution: side of the square picture that the stage draws.
      low_resolution: side of the picture that it is conditioned on; 0 for the base stage.
      model: `UNetConfig` or `EfficientUNetConfig`.

    Raises:
      UserError: the resolutions, the network and the crops do not fit each other.
    """

    resolution: int = 64
    low_resolution: int = 0
    model: Network = EfficientUNetConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()

    def __post_init__(self) -> None:
        check_at_least("resolution", self.resolution, 1)
        check_at_least("low_resolution", self.low_resolution, 0)
        if self.low_resolution and self.resolution % self.low_resolution:
            raise UserError(
                f"resolution={self.resolution} must be a multiple of "
                f"low_resolution={self.low_resolution}"
            )
        try:
            self.model.check_resolution(self.resolution)
        except UserError as error:
            raise UserError(f"model: {error}") from error
        if self.model.input_skip == "mix" and self.diffusion.prediction != "x":
            raise UserError(
                f"model.input_skip='mix' with diffusion.prediction={self.diffusion.prediction!r}: "
                "it mixes pictures, so the network must predict 'x'; otherwise use 'none'"
            )
        crop_size = self.train.crop_size
        if crop_size and not self.factor:
            raise UserError(f"train.crop_size={crop_size} is for super-resolution stages only")
        if crop_size and (crop_size % self.factor or crop_size > self.resolution):
            raise UserError(
                f"train.crop_size={crop_size} must be a multiple of the up-scaling factor "
                f"{self.factor} and at most the resolution {self.resolution}"
            )

    @property
    def factor(self) -> int:
        """The up-scaling factor of a super-resolution stage, 0 for a base stage."""
        return self.resolution // self.low_resolution if self.low_resolution else 0

    @property
    def train_size(self) -> int:
        """Side of the square pictures that the stage is trained on without aspect buckets."""
        return self.train.crop_size or self.resolution
