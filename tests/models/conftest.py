"""Tiny networks of both kinds with inputs, shared by the tests of the models."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models import (
    EfficientUNetConfig,
    UNetConfig,
    apply_network,
    init_params,
    project_text,
)
from imagen_jax.types import TextCond

TEXT_DIM = 12

CONFIGS = {
    # Runs `first`, `blocks` of length 1 and 2, and `last`; joint attention.
    "unet": UNetConfig(
        channels=(8, 16),
        num_res_blocks=(1, 2),
        self_attention=(False, True),
        text_attention=("none", "joint"),
        head_dim=8,
    ),
    # A level without stride, joint attention, and self-attention followed by cross-attention.
    "efficient_unet": EfficientUNetConfig(
        channels=(8, 16, 16),
        num_res_blocks=(1, 2, 1),
        strides=(1, 2, 2),
        self_attention=(False, True, True),
        text_attention=("none", "joint", "cross"),
        head_dim=8,
        attention_expansion=2,
    ),
}


def perturb(params: dict, scale: float = 0.1) -> dict:
    """Adds noise to every parameter, so that nothing hides behind a kernel of zeros."""
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: x + jnp.float32(scale * rng.normal(size=x.shape)), params)


@dataclasses.dataclass(frozen=True, eq=False)
class Tiny:
    """A network, its parameters as drawn and perturbed, and inputs for a batch of 2 at 8x8."""

    model: Any
    params: dict
    perturbed: dict
    text: TextCond
    z: jax.Array
    logsnr: jax.Array
    conditions: dict

    def predict(self, params: dict, text: TextCond | None = None, **changes: Any) -> jax.Array:
        """The prediction, with some inputs changed."""
        inputs = {"z": self.z, "logsnr": self.logsnr, **self.conditions, **changes}
        z, logsnr = inputs.pop("z"), inputs.pop("logsnr")
        model = inputs.pop("model", self.model)
        features = project_text(model, params, self.text if text is None else text)
        return apply_network(model, params, z, logsnr, features, **inputs)

    @functools.cached_property
    def jitted(self):
        """`predict`, compiled once for all tests that call it alike."""
        return jax.jit(self.predict)


@pytest.fixture(scope="session", params=["unet", "efficient_unet"])
def tiny(request) -> Tiny:
    """The base U-Net without, the Efficient U-Net with a low-resolution condition."""
    low_res = request.param == "efficient_unet"
    model = CONFIGS[request.param].make_network(low_res=low_res, text_dim=TEXT_DIM)
    params = init_params(model, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    text = TextCond(
        tokens=jax.random.normal(keys[0], (2, 5, TEXT_DIM)),
        mask=jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool),
    )
    conditions = {}
    if low_res:
        conditions["low_res"] = jax.random.normal(keys[1], (2, 8, 8, 3))
        conditions["aug_level"] = jnp.array([0.1, 0.7])
    z = jax.random.normal(keys[2], (2, 8, 8, 3))
    return Tiny(model, params, perturb(params), text, z, jnp.array([-3.0, 2.0]), conditions)
