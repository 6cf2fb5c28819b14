"""Settings of a whole cascade."""

from __future__ import annotations

import dataclasses

from imagen_jax.aspect import SQUARE
from imagen_jax.checks import check_path_name
from imagen_jax.config.buckets import bucket_shapes
from imagen_jax.config.data import DataConfig
from imagen_jax.config.stage import StageConfig
from imagen_jax.config.text import TextConfig
from imagen_jax.errors import UserError
from imagen_jax.parallel.mesh import MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """A cascade: what it learns from, and its stages by name.

    Attributes:
      name: of its weights.
      seed: of all that training draws at random.
      text, data, mesh: the text encoder, the data, the devices.
      wandb_project: project of Weights & Biases that training logs to, too; empty: none.
      stages: the diffusion models.

    Raises:
      UserError: no stage, a stage whose name cannot be that of a directory, stages that do not
        chain, aspect buckets that do not fit the stages.
    """

    name: str = ""
    seed: int = 0
    text: TextConfig = TextConfig()
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    wandb_project: str = ""
    stages: dict[str, StageConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.stages:
            raise UserError("stages is empty: a cascade needs at least one stage")
        for name in self.stages:
            check_path_name("stages has the name", name)
        previous = 0
        for name, stage in self.ordered_stages().items():
            if stage.low_resolution != previous:
                raise UserError(
                    f"stages.{name}.low_resolution is {stage.low_resolution}, but the stage before "
                    f"it draws {previous} (0: there is none); the stages must chain"
                )
            previous = stage.resolution
        for name, stage in self.stages.items():
            for aspect, shape in self.shapes(name).items():
                if stage.train.crop_size > min(shape):
                    raise UserError(
                        f"stages.{name}.train.crop_size={stage.train.crop_size} is larger than the "
                        f"{aspect} pictures of data.aspect_buckets, which are "
                        f"{shape[1]}x{shape[0]}: crop at most {min(shape)}"
                    )

    def ordered_stages(self) -> dict[str, StageConfig]:
        """The stages from the lowest resolution to the highest."""
        return dict(sorted(self.stages.items(), key=lambda item: item[1].resolution))

    def shapes(self, name: str) -> dict[str, tuple[int, int]]:
        """The shapes (H, W) that a stage is trained in, by aspect ratio as "width:height".

        Without buckets the square alone.
        """
        resolution = self.stages[name].resolution
        if not self.data.aspect_buckets:
            return {SQUARE: (resolution, resolution)}
        first = bucket_shapes(list(self.ordered_stages().values()), self.data.aspect_buckets)
        lowest = next(iter(self.ordered_stages().values())).resolution
        factor = resolution // lowest
        return {aspect: (h * factor, w * factor) for aspect, (h, w) in first.items()}
