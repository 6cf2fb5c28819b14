"""What a run of `configs/tiny.py` leaves for the commands that read weights."""

import jax
import numpy as np
import pytest

from imagen_jax.config import load_config
from imagen_jax.stage import open_stage
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
    for name in config.ordered_stages():
        # Zeros draw grey pictures and need no compiled initialisation.
        shapes = open_stage(config, name, encoder.dim).abstract_params()
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
