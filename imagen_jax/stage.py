"""An opened stage: the settings of one diffusion model of a cascade, and its network."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from imagen_jax.config import CascadeConfig, StageConfig
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.errors import UserError
from imagen_jax.models import init_params
from imagen_jax.types import Array, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """What training, sampling, planning and evaluation need of a stage; see `open_stage`.

    Attributes:
      cascade: settings of the whole cascade.
      name: of the stage.
      network: without parameters.
      text_dim: D of the text embeddings that the network takes.
    """

    cascade: CascadeConfig
    name: str
    network: nn.Module
    text_dim: int

    @property
    def config(self) -> StageConfig:
        """Settings of the stage."""
        return self.cascade.stages[self.name]

    @property
    def index(self) -> int:
        """Place of the stage in the cascade, from 0."""
        return list(self.cascade.ordered_stages()).index(self.name)

    @property
    def factor(self) -> int:
        """The up-scaling factor of a super-resolution stage, 0 for a base stage."""
        return self.config.factor

    @property
    def schedule(self) -> Schedule:
        """The log-SNR by time, in sampling."""
        return self.config.diffusion.schedule.at(self.config.resolution)

    @property
    def train_levels(self) -> Schedule:
        """The log-SNR of a training example by a uniform time."""
        return self.config.diffusion.train_levels.at(self.schedule)

    def key(self) -> Array:
        """The base key of the stage: each draws its own randomness from the cascade's seed."""
        return jax.random.fold_in(jax.random.key(self.cascade.seed), self.index)

    def abstract_params(self) -> Params:
        """The parameters as `ShapeDtypeStruct`s; nothing is computed."""
        return jax.eval_shape(lambda: init_params(self.network, jax.random.key(0)))

    def replace(self, config: StageConfig) -> Stage:
        """The same stage with other settings."""
        stages = {**self.cascade.stages, self.name: config}
        cascade = dataclasses.replace(self.cascade, stages=stages)
        return open_stage(cascade, self.name, self.text_dim)

    def without_remat(self) -> Stage:
        """The stage with its network unrolled and nothing computed twice, for counting FLOPs."""
        model = dataclasses.replace(self.config.model, scan_blocks=False, remat=())
        return self.replace(dataclasses.replace(self.config, model=model))


def open_stage(cascade: CascadeConfig, name: str, text_dim: int) -> Stage:
    """Opens a stage of a cascade.

    Args:
      cascade: settings.
      name: of the stage.
      text_dim: D of the text encoder's embeddings.

    Raises:
      UserError: no such stage, or `text_dim` below 1.
    """
    if name not in cascade.stages:
        raise UserError(f"there is no stage {name!r}; the stages are {', '.join(cascade.stages)}")
    if text_dim < 1:
        raise UserError(f"text_dim={text_dim} must be at least 1")
    config = cascade.stages[name]
    network = config.model.make_network(low_res=bool(config.low_resolution), text_dim=text_dim)
    return Stage(cascade=cascade, name=name, network=network, text_dim=text_dim)
