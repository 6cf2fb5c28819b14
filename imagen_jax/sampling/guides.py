"""What guidance moves away from in a cascade: negative prompts, and guide networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.denoiser import Guide
from imagen_jax.errors import UserError
from imagen_jax.sampling.encoded_prompts import EncodedPrompts
from imagen_jax.stage import Stage, open_stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.types import TextCond, null_text
from imagen_jax.weights.artefact import Artefact, check_params


@dataclasses.dataclass(frozen=True)
class StageGuide:
    """The guide of one stage.

    Attributes:
      network: with its parameters, on the default device.
      sha256: of the weights file.
    """

    network: Guide
    sha256: str


# By stage.
Guides = Mapping[str, StageGuide]


def check_guide(guide: Artefact, artefact: Artefact) -> None:
    """Whether weights can guide others.

    Args:
      guide: the weaker weights.
      artefact: the weights that are guided.

    Raises:
      UserError: they were trained with another text encoder; they have no stage in common; or a
        common stage has another resolution or prediction type.
    """
    for what, theirs, ours in (
        ("text encoder", guide.encoder_identity, artefact.encoder_identity),
        ("tokenizer", guide.tokenizer_hash, artefact.tokenizer_hash),
    ):
        if theirs != ours:
            raise UserError(
                f"the guide weights were trained with another {what} ({theirs[:12]}...) than the "
                f"weights that they guide ({ours[:12]}...): give guide weights of the same one"
            )
    common = [name for name in guide.stages if name in artefact.stages]
    if not common:
        raise UserError(
            f"the guide weights have the stages {', '.join(guide.stages) or 'none'}, but the "
            f"weights that they guide {', '.join(artefact.stages) or 'none'}: none in common"
        )
    for name in common:
        mine, theirs = artefact.config.stages[name], guide.config.stages[name]
        for what, own, other in (
            ("resolution", mine.resolution, theirs.resolution),
            ("low_resolution", mine.low_resolution, theirs.low_resolution),
            ("prediction", mine.diffusion.prediction, theirs.diffusion.prediction),
        ):
            if own != other:
                raise UserError(
                    f"stage {name!r}: the guide weights have {what}={other}, the weights that they "
                    f"guide {what}={own}: only the network and its training may differ"
                )


def open_guides(guide: Artefact, stages: Mapping[str, Stage], text_dim: int) -> Guides:
    """The guides of those `stages` that `guide` has; see `check_guide`. Raises UserError."""
    guides = {}
    for name in stages:
        if name not in guide.stages:
            continue
        stage, weights = open_stage(guide.config, name, text_dim), guide.stages[name]
        check_params(name, weights.params, stage.abstract_params())
        params = jax.tree.map(jnp.asarray, weights.params)
        guides[name] = StageGuide(Guide(params, stage.network), weights.sha256)
    return guides


class NegativePrompts:
    """The conditions of negative prompts; the null text for those that are None.

    Args:
      encoder: the text encoder.
      prompts: one for each prompt, or () for none at all.
      keep, weighted: see `EncodedPrompts`.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        prompts: Sequence[str | None],
        keep: int | None,
        *,
        weighted: bool,
    ):
        self._is_given = np.array([prompt is not None for prompt in prompts], bool)
        self._conditions = None
        if self._is_given.any():
            texts = [prompt or "" for prompt in prompts]
            self._conditions = EncodedPrompts(encoder, texts, keep, weighted=weighted)

    def __call__(self, numbers: np.ndarray, text: TextCond) -> TextCond | None:
        """The conditions for the prompts `numbers` `[B]`; None if no prompt has a negative one.

        Args:
          numbers: of the prompts.
          text: their own conditions, whose shapes the null text has.
        """
        if self._conditions is None:
            return None
        negative, null = self._conditions(numbers), jax.device_get(null_text(text))
        given = self._is_given[numbers]
        return TextCond(
            tokens=np.where(given[:, None, None], negative.tokens, null.tokens),
            mask=np.where(given[:, None], negative.mask, null.mask),
        )
