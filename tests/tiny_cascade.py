"""A cascade of 8 and 16 px with random weights, and the embedded text encoder."""

import jax
import numpy as np
import pytest

from imagen_jax.config import (
    CascadeConfig,
    DiffusionConfig,
    SampleConfig,
    StageConfig,
    TextConfig,
)
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.samplers import DDIM
from imagen_jax.models import EfficientUNetConfig
from imagen_jax.stage import open_stage
from imagen_jax.text.encoder import load_encoder
from imagen_jax.weights.artefact import Artefact, StageWeights

# ddim with noise, so that the tests notice a wrong noise key.
SAMPLE = SampleConfig(num_steps=3, sampler=DDIM(eta=0.5), guidance=Guidance(2.0))
MODEL = EfficientUNetConfig(
    channels=(8, 16),
    num_res_blocks=(1, 1),
    strides=(2, 2),
    self_attention=(False, False),
    text_attention=("none", "cross"),
    head_dim=8,
)
CONFIG = CascadeConfig(
    name="test",
    text=TextConfig(max_length=12),
    stages={
        "base": StageConfig(resolution=8, model=MODEL, sample=SAMPLE),
        "sr16": StageConfig(
            resolution=16,
            low_resolution=8,
            model=MODEL,
            diffusion=DiffusionConfig(prediction="eps"),
            sample=SAMPLE,
        ),
    },
)


@pytest.fixture(scope="session")
def tiny_config():
    return CONFIG


@pytest.fixture(scope="session")
def random_params():
    """`make(stage, seed) -> params`, see `make_params`."""
    return make_params


def make_params(stage, seed):
    """Parameters none of which is zero, so that every input has an influence."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return np.float32((path[-1].key == "scale") + noise)

    return jax.tree_util.tree_map_with_path(draw, stage.abstract_params())


@pytest.fixture(scope="session")
def encoder():
    return load_encoder(CONFIG.text)


@pytest.fixture(scope="session")
def tiny(encoder):
    """See `make_artefact`."""
    return make_artefact(encoder)


def make_artefact(encoder):
    """An artefact of both stages, parameters as numpy arrays."""
    stages = {}
    for seed, name in enumerate(CONFIG.ordered_stages()):
        params = make_params(open_stage(CONFIG, name, encoder.dim), seed)
        stages[name] = StageWeights(
            params=params,
            sha256=f"{seed}" * 64,
            num_parameters=sum(p.size for p in jax.tree.leaves(params)),
            images_seen=1000,
            steps=10,
            training={"loss": 0.5},
        )
    return Artefact(
        config=CONFIG,
        encoder_identity=encoder.identity,
        tokenizer_hash=encoder.tokenizer_hash,
        stages=stages,
    )
