"""Settings of the text encoder."""

from __future__ import annotations

import dataclasses

from imagen_jax.checks import check_at_least, check_choice
from imagen_jax.errors import UserError

# Attention over more tokens than this exceeds the memory of every device.
MAX_LENGTH = 2**16
CLEANINGS = ("none", "if")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The frozen text encoder.

    Attributes:
      encoder: "embedded" or "embedded_icons" (small T5s that ship with the package), the path of a
        Hugging Face directory of a T5 or of a CLIP, or the id of one on the hub
        ("google/t5-v1_1-xl").
      max_length: tokens a caption is cut to, end-of-sequence included.
      cleaning: what is done to captions first: "none", or "if" (as for the DeepFloyd IF weights).

    Raises:
      UserError: a value out of range.
    """

    encoder: str = "embedded"
    max_length: int = 128
    cleaning: str = "none"

    def __post_init__(self) -> None:
        check_at_least("max_length", self.max_length, 2)
        if self.max_length > MAX_LENGTH:
            raise UserError(f"max_length={self.max_length} must be at most {MAX_LENGTH}")
        check_choice("cleaning", self.cleaning, CLEANINGS)
