"""Opens stages that tests describe by their settings alone."""

from imagen_jax.config import CascadeConfig, StageConfig
from imagen_jax.models import EfficientUNetConfig
from imagen_jax.stage import Stage, open_stage

_SMALLEST = EfficientUNetConfig(
    channels=(8,),
    num_res_blocks=(1,),
    strides=(1,),
    self_attention=(False,),
    text_attention=("none",),
)


def opened(config: StageConfig, text_dim: int, **cascade) -> Stage:
    """The stage `config` of a cascade that has no more than it needs."""
    stages = {"stage": config}
    if config.low_resolution:
        stages = {"base": StageConfig(resolution=config.low_resolution, model=_SMALLEST), **stages}
    return open_stage(CascadeConfig(stages=stages, **cascade), "stage", text_dim)
