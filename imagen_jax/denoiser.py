"""The denoiser: networks, prediction type, guidance and threshold to x_hat.

This is the only place where a network's output becomes x_hat. Sampling, previews and evaluation
all use it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.diffusion.guidance import Guidance, guide
from imagen_jax.diffusion.process import predict_x
from imagen_jax.diffusion.samplers import Denoiser, Prediction
from imagen_jax.diffusion.thresholding import NoThreshold, Threshold
from imagen_jax.models import apply_network, project_text
from imagen_jax.types import Array, Params, TextCond, null_text


@dataclasses.dataclass(frozen=True)
class LowRes:
    """The low-resolution condition of a super-resolution network.

    Attributes:
      image: `[B, H, W, 3]` float32, noised and up-sampled; see `augmentation.low_res_condition`.
      aug_level: `[B]` float32 in [0, 1], the level of its noise.
    """

    image: Array
    aug_level: Array


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The outputs of the networks at one noise level, in the denoiser's prediction type.

    Attributes:
      conditional: `[B, H, W, 3]` float32.
      reference: `[B, H, W, 3]` float32, the output that guidance moves away from: without text
        (classifier-free guidance) or of a weaker network (autoguidance). None without guidance.
    """

    conditional: Array
    reference: Array | None = None


# (z [B, H, W, 3] float32, logsnr [B] float32) -> Outputs.
NetworkFn = Callable[[Array, Array], Outputs]


def make_denoiser(
    network_fn: NetworkFn,
    prediction: str,
    *,
    guidance: Guidance | None = None,
    threshold: Threshold = NoThreshold(),
) -> Denoiser:
    """A denoiser from the outputs of networks.

    Args:
      network_fn: returns the outputs; they have a reference if and only if there is guidance.
      prediction: type of the outputs, "eps", "v" or "x".
      guidance: None for none.
      threshold: applied to x_hat, after guidance.

    Returns:
      `(z [B, H, W, 3], logsnr [B]) -> Prediction`, all float32.
    """

    def denoise(z: Array, logsnr: Array) -> Prediction:
        outputs = network_fn(z, logsnr)
        combined = outputs.conditional
        if guidance is not None:
            combined = guide(combined, outputs.reference, guidance.weight_at(logsnr))
        return Prediction(threshold(predict_x(combined, z, logsnr, prediction)))

    return denoise


def make_network_fn(
    network: nn.Module,
    params: Params,
    text: TextCond,
    low_res: LowRes | None = None,
    *,
    with_null_text: bool = False,
) -> NetworkFn:
    """The function that runs one network with a text; the text is projected here, once.

    With the null text, rows are interleaved into one batch of 2 B (row 2i has the text, 2i + 1 the
    null text), so that a batch which is sharded over devices stays where it is.

    Args:
      network: of the stage.
      params: of the network.
      text: captions, batch size B.
      low_res: for a super-resolution network.
      with_null_text: also run it without text, for the reference of guidance.
    """
    both = _interleave if with_null_text else lambda a, b: a
    features = project_text(network, params, jax.tree.map(both, text, null_text(text)))
    condition = {}
    if low_res is not None:
        condition = {
            "low_res": both(low_res.image, low_res.image),
            "aug_level": both(low_res.aug_level, low_res.aug_level),
        }

    def network_fn(z: Array, logsnr: Array) -> Outputs:
        rows = apply_network(
            network, params, both(z, z), both(logsnr, logsnr), features, **condition
        )
        if not with_null_text:
            return Outputs(rows)
        return Outputs(rows[0::2], rows[1::2])

    return network_fn


def network_denoiser(
    network: nn.Module,
    params: Params,
    text: TextCond,
    prediction: str,
    low_res: LowRes | None = None,
    *,
    guidance: Guidance | None = None,
    threshold: Threshold = NoThreshold(),
) -> Denoiser:
    """The denoiser of one network with classifier-free guidance; arguments as above."""
    network_fn = make_network_fn(
        network, params, text, low_res, with_null_text=guidance is not None
    )
    return make_denoiser(network_fn, prediction, guidance=guidance, threshold=threshold)


def _interleave(a: Array, b: Array) -> Array:
    """`[B, ...]` and `[B, ...]` to `[2B, ...]`: a_0, b_0, a_1, b_1, ..."""
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])
