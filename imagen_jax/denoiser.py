"""The denoiser: networks, prediction type, guidance and threshold to x_hat.

This is the only place where a network's output becomes x_hat. Sampling, previews and evaluation
all use it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from imagen_jax.diffusion.guidance import Guidance
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
      reference: `[B, H, W, 3]` float32, the output without text or for a negative prompt, that
        classifier-free guidance moves away from. None without it.
      guide: `[B, H, W, 3]` float32, the output of the guide network, that autoguidance moves away
        from. None without it.
    """

    conditional: Array
    reference: Array | None = None
    guide: Array | None = None


@flax.struct.dataclass
class Guide:
    """A weaker network of the same stage, for autoguidance.

    Attributes:
      params: of the network.
      network: static; of the same prediction type, low-resolution condition and text encoder.
    """

    params: Params
    network: nn.Module = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class References:
    """What guidance moves away from, beside the null text.

    Attributes:
      negative: the text in the place of the null text, batch size B; None for the null text.
      guide: of autoguidance; None for none.
    """

    negative: TextCond | None = None
    guide: Guide | None = None


NO_REFERENCES = References()

# (z [B, H, W, 3] float32, logsnr [B] float32) -> Outputs.
NetworkFn = Callable[[Array, Array], Outputs]


def make_denoiser(
    network_fn: NetworkFn,
    prediction: str,
    *,
    guidance: Guidance | None = None,
    threshold: Threshold = NoThreshold(),
    unguided_fn: NetworkFn | None = None,
    grid: Array | None = None,
) -> Denoiser:
    """A denoiser from the outputs of networks.

    Args:
      network_fn: returns the outputs, with the references of the guidance.
      prediction: type of the outputs, "eps", "v" or "x".
      guidance: None for none. Its weights apply to those references that the outputs have.
      threshold: applied to x_hat, after guidance.
      unguided_fn: returns the conditional output alone; run instead of `network_fn` at the noise
        levels where no picture of the batch is guided. None: `network_fn`.
      grid: `[N + 1]` float32 log-SNRs of the sampler, for a schedule of the weight over its steps.

    Returns:
      `(z [B, H, W, 3], logsnr [B]) -> Prediction`, all float32.
    """
    guidance = None if guidance is None else guidance.without_idle_parts()
    plain_fn = unguided_fn or network_fn

    def plain(z: Array, logsnr: Array, strength: Array | None) -> Array:
        del strength
        return predict_x(plain_fn(z, logsnr).conditional, z, logsnr, prediction)

    def guided(z: Array, logsnr: Array, strength: Array | None) -> Array:
        outputs = network_fn(z, logsnr)
        weighted = (
            (outputs.reference, guidance.weight),
            (outputs.guide, guidance.guide_weight),
        )
        references = [(out, w) for out, w in weighted if out is not None and w is not None]
        if guidance.is_affine:
            combined = guidance.combine(outputs.conditional, references, strength)
            return predict_x(combined, z, logsnr, prediction)
        x_hat = predict_x(outputs.conditional, z, logsnr, prediction)
        references = [(predict_x(out, z, logsnr, prediction), w) for out, w in references]
        return guidance.combine(x_hat, references, strength)

    def denoise(z: Array, logsnr: Array) -> Prediction:
        if guidance is None:
            x_hat = plain(z, logsnr, None)
        elif not guidance.varies:
            x_hat = guided(z, logsnr, None)
        else:
            strength = guidance.strength(logsnr, grid)
            x_hat = jax.lax.cond(jnp.any(strength != 0.0), guided, plain, z, logsnr, strength)
        return Prediction(threshold(x_hat))

    return denoise


def make_network_fn(
    network: nn.Module,
    params: Params,
    text: TextCond,
    low_res: LowRes | None = None,
    *,
    with_null_text: bool = False,
    negative: TextCond | None = None,
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
      negative: text in the place of the null text, batch size B; None for the null text.
    """
    both = _interleave if with_null_text else lambda a, b: a
    if negative is None:
        negative = null_text(text)
    features = project_text(network, params, jax.tree.map(both, text, negative))
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
    references: References = NO_REFERENCES,
    grid: Array | None = None,
) -> Denoiser:
    """The denoiser of one network, with guidance; arguments as above.

    The unconditional rows and the guide network are computed only where the guidance acts.
    """
    guidance = None if guidance is None else guidance.without_idle_parts()
    by_text = guidance is not None and guidance.weight is not None
    network_fn = make_network_fn(
        network, params, text, low_res, with_null_text=by_text, negative=references.negative
    )
    unguided_fn = None
    if guidance is not None and guidance.varies:
        unguided_fn = make_network_fn(network, params, text, low_res)
    if guidance is not None and references.guide is not None:
        network_fn = _with_guide(network_fn, references.guide, text, low_res)
    return make_denoiser(
        network_fn,
        prediction,
        guidance=guidance,
        threshold=threshold,
        unguided_fn=unguided_fn,
        grid=grid,
    )


def _with_guide(
    network_fn: NetworkFn, guide: Guide, text: TextCond, low_res: LowRes | None
) -> NetworkFn:
    guide_fn = make_network_fn(guide.network, guide.params, text, low_res)

    def both(z: Array, logsnr: Array) -> Outputs:
        weaker = guide_fn(z, logsnr).conditional
        return dataclasses.replace(network_fn(z, logsnr), guide=weaker)

    return both


def _interleave(a: Array, b: Array) -> Array:
    """`[B, ...]` and `[B, ...]` to `[2B, ...]`: a_0, b_0, a_1, b_1, ..."""
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])
