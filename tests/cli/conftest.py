"""What a run of `configs/tiny.py` leaves for the commands that read weights."""

from functools import partial

import jax
import numpy as np
import pytest

from imagen_jax.config import load_config
from imagen_jax.models import build_model, init_params
from imagen_jax.text.encoder import load_encoder
from imagen_jax.weights import artefact as artefact_lib


@pytest.fixture(scope="session")
def config():
    return load_config("configs/tiny.py")


@pytest.fixture(scope="session")
def workdir(config, tmp_path_factory):
    """What a run of `configs/tiny.py` leaves for sampling, untrained."""
    encoder = load_encoder(config.text)
    root = tmp_path_factory.mktemp("run")
    for name, stage in config.ordered_stages().items():
        model = build_model(
            stage.model,
            resolution=stage.resolution,
            low_res=stage.low_resolution > 0,
            text_dim=encoder.dim,
        )
        # Zeros draw grey pictures and need no compiled initialisation.
        shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
        artefact_lib.save_stage(
            root / name / "ema",
            name,
            config,
            jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes),
            {"steps": 2, "images_seen": 16},
            encoder.identity,
            encoder.tokenizer_hash,
        )
    return root
