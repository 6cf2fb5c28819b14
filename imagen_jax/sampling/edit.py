"""What a user asks of a picture of their own: to be drawn anew from noise in part or in parts."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from imagen_jax.data.images import crop_to_aspect, resize_mask, resize_uint8
from imagen_jax.errors import UserError, brief
from imagen_jax.sampling.low_res_image import load_picture
from imagen_jax.sampling.repaint import StageEdit
from imagen_jax.sampling.sizes import MAX_SIDE
from imagen_jax.types import normalize_image

logger = logging.getLogger("imagen_jax")

# Values of a mask from this one on are drawn anew.
WHITE_FROM = 128
# RePaint jumps by 10 of 250 steps.
RUNS = 25


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """A picture, what of it is drawn anew, and how.

    Attributes:
      picture: `[H, W, 3]` uint8.
      mask: `[H, W]` bool, True where the picture is drawn anew; None: everywhere.
      strength: the share of the steps that is run, in (0, 1], rounded up to whole steps: with 0.6
        of 50 steps the picture is noised to the level that 30 steps remain from. 1 starts from
        noise. A number is for the first stage, and the others start from noise; or by stage.
      resample: how often the steps are drawn (r of RePaint), at least 1; for all stages or by
        stage.
      jump: steps that are repeated at once (the jump length of RePaint); for all stages or by
        stage. 0: a 25th of the steps that are run, as in the paper.
      padded: whether the picture was enlarged by `outpaint`, so that nothing may be cut off it.

    Raises:
      UserError: a value is out of range, the mask has another size than the picture or marks
        nothing or everything, repeated steps without a mask.
    """

    picture: np.ndarray
    mask: np.ndarray | None = None
    strength: float | Mapping[str, float] = 1.0
    resample: int | Mapping[str, int] = 1
    jump: int | Mapping[str, int] = 0
    padded: bool = False

    def __post_init__(self) -> None:
        for value in _values(self.strength):
            check_strength(value)
        for name, least in (("resample", 1), ("jump", 0)):
            for value in _values(getattr(self, name)):
                _check_count(name, value, least)
        if self.mask is None:
            if any(value != 1 for value in _values(self.resample)):
                raise UserError(f"resample={self.resample} needs a mask: it repeats inpainting")
            return
        size, masked = (_size(array) for array in (self.picture, self.mask))
        if size != masked:
            raise UserError(
                f"the mask is {masked} pixels and the picture {size}: give one of {size}"
            )
        if not self.mask.any():
            raise UserError("the mask is black everywhere: nothing is to be drawn; paint it white")
        if self.mask.all():
            raise UserError(
                "the mask is white everywhere: nothing of the picture is kept; draw without it"
            )

    def cut_to(self, shape: tuple[int, int]) -> Edit:
        """The middle of the picture with the aspect ratio of `shape` (H, W); warns if it is cut.

        Raises:
          UserError: a padded picture would be cut, or the rest of the mask marks nothing or all.
        """
        from PIL import Image

        height, width = self.picture.shape[:2]
        if height * shape[1] == width * shape[0]:
            return self
        if self.padded:
            divisor = math.gcd(width, height)
            raise UserError(
                f"the padded picture is {width}x{height}, but {shape[1]}x{shape[0]} is drawn: pad "
                f"it to that aspect ratio, or give one of {width // divisor}:{height // divisor} "
                "(--size, --aspect)"
            )
        logger.warning(
            "the picture is %dx%d pixels; the middle of it, %d:%d, is used",
            width,
            height,
            shape[1],
            shape[0],
        )
        picture = np.asarray(crop_to_aspect(Image.fromarray(self.picture), *shape))
        mask = self.mask
        if mask is not None:
            mask = np.asarray(crop_to_aspect(Image.fromarray(np.uint8(mask)), *shape)) > 0
        return dataclasses.replace(self, picture=picture, mask=mask)

    def at(
        self, stages: Sequence[str], name: str, shape: tuple[int, int], num_steps: int
    ) -> StageEdit | None:
        """What a stage does with the picture, which is resized once, from the given one.

        A pixel of the stage is kept if every pixel that it is computed from is kept.

        Args:
          stages: that are run, in order.
          name: the stage.
          shape: (H, W) of its pictures.
          num_steps: of its grid.

        Returns:
          None where it draws as without a picture.
        """
        strength, resample, jump = self._of(stages, name)
        # Not a step more for what is rounded, such as 0.28 * 25.
        run = max(1, math.ceil(round(strength * num_steps, 6)))
        keep = None
        if self.mask is not None:
            keep = ~resize_mask(self.mask, *shape)
            keep = jnp.asarray(keep[:, :, None]) if keep.any() else None
        if keep is None and run == num_steps:
            return None
        return StageEdit(
            picture=normalize_image(jnp.asarray(self.resized(shape))),
            keep=keep,
            skip=num_steps - run,
            resample=resample if keep is not None else 1,
            jump=min(run, jump or max(1, round(run / RUNS))),
        )

    def resized(self, shape: tuple[int, int]) -> np.ndarray:
        """The picture as `[*shape, 3]` uint8."""
        return resize_uint8(self.picture, *shape)

    def repetitions(self, stages: Sequence[str], name: str) -> float:
        """About the work of a stage, compared with drawing from noise."""
        strength, resample, _ = self._of(stages, name)
        return strength * resample

    def identity(self, stages: Sequence[str]) -> dict[str, Any]:
        """What decides the pictures, as plain JSON values."""
        chosen = {name: self._of(stages, name) for name in stages}
        found = {
            "picture_sha256": _sha256(self.picture),
            "strength": {name: values[0] for name, values in chosen.items()},
        }
        if self.mask is not None:
            found["mask_sha256"] = _sha256(self.mask)
            found["resample"] = {name: values[1] for name, values in chosen.items()}
            found["jump"] = {name: values[2] for name, values in chosen.items()}
        return found

    def check_stages(self, stages: Sequence[str]) -> None:
        """Raises UserError if a setting names a stage that is not run."""
        for field in ("strength", "resample", "jump"):
            value = getattr(self, field)
            for name in value if isinstance(value, Mapping) else ():
                if name not in stages:
                    raise UserError(f"{field} for {name!r}, but the stages are {', '.join(stages)}")

    def _of(self, stages: Sequence[str], name: str) -> tuple[float, int, int]:
        strength = self.strength
        if not isinstance(strength, Mapping):
            strength = {stages[0]: strength}
        resample, jump = (
            value.get(name, default) if isinstance(value, Mapping) else value
            for value, default in ((self.resample, 1), (self.jump, 0))
        )
        return float(strength.get(name, 1.0)), int(resample), int(jump)


def load_mask(mask: Any) -> np.ndarray:
    """A mask as `[H, W]` bool, True where the picture is drawn anew.

    White is drawn anew, black is kept; greys count as white from 128 on, and so does transparency.

    Args:
      mask: a file, a PIL image, `[H, W]` bool or uint8, or `[H, W, 3]` uint8.

    Raises:
      UserError: it cannot be read, or has colours.
    """
    shape = getattr(mask, "shape", None)
    if shape is not None and len(shape) == 2:
        array = np.asarray(mask)
        if array.dtype == bool:
            return array
        if array.dtype != np.uint8 or not array.size:
            raise UserError(
                f"a mask is [H, W] bool or uint8, not {list(array.shape)} {array.dtype}"
            )
        return array >= WHITE_FROM
    grey = load_picture(mask, "mask")
    coloured = np.argwhere((grey != grey[..., :1]).any(-1))
    if len(coloured):
        y, x = coloured[0]
        raise UserError(
            f"the mask has colours, such as {tuple(int(v) for v in grey[y, x])} at ({x}, {y}): "
            "make it black (kept) and white (drawn anew)"
        )
    return grey[..., 0] >= WHITE_FROM


def parse_margins(text: Any, what: str) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of "16,0,0.25,0": whole numbers are pixels, others shares of a side.

    Raises:
      UserError: it names `what` and the value.
    """
    items = text.split(",") if isinstance(text, str) else list(text)
    numbers = []
    for item in items:
        number = item
        if isinstance(item, str):
            item = item.strip()
            if re.fullmatch(r"[0-9]{1,6}", item):
                number = int(item)
            elif re.fullmatch(r"[0-9]{0,3}\.[0-9]{1,6}", item):
                number = float(item)
        valid = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not valid or not 0 <= number <= MAX_SIDE:
            raise UserError(
                f"{what}: {brief(item)} is no margin; write pixels (16) or a share (0.25)"
            )
        numbers.append(number)
    if len(numbers) != 4:
        raise UserError(f"{what}={brief(text)} must be four margins: LEFT,TOP,RIGHT,BOTTOM")
    if not any(numbers):
        raise UserError(f"{what}={brief(text)} adds nothing: make a margin larger")
    return tuple(numbers)


def outpaint(
    picture: np.ndarray, margins: tuple[float, float, float, float], mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A picture with margins to be drawn, and the mask that marks them.

    Args:
      picture: `[H, W, 3]` uint8.
      margins: see `parse_margins`; a share is of the width (left, right) or the height.
      mask: `[H, W]` bool of what is drawn anew within the picture, too.

    Returns:
      `[H', W', 3]` uint8, whose margins repeat the outermost pixels, and `[H', W']` bool.

    Raises:
      UserError: the margins are below a pixel, or a mask of another size.
    """
    height, width = picture.shape[:2]
    left, top, right, bottom = (
        margin if isinstance(margin, int) else round(margin * side)
        for margin, side in zip(margins, (width, height, width, height), strict=True)
    )
    if not any((left, top, right, bottom)):
        raise UserError(f"margins of {margins} are below a pixel of a {width}x{height} picture")
    if mask is None:
        mask = np.zeros((height, width), bool)
    elif mask.shape != (height, width):
        size = _size(picture)
        raise UserError(
            f"the mask is {_size(mask)} pixels and the picture {size}: give one of {size}"
        )
    sides = ((top, bottom), (left, right))
    return (
        np.pad(picture, (*sides, (0, 0)), mode="edge"),
        np.pad(mask, sides, constant_values=True),
    )


def check_strength(value: Any) -> None:
    """Raises UserError unless `value` is in (0, 1]."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"strength={value!r} is not a number") from error
    if not 0.0 < number <= 1.0:
        reason = "; with 0 nothing would be drawn" if number == 0 else ""
        raise UserError(f"strength={value} must be in (0, 1]{reason}")


def _check_count(name: str, value: Any, least: int) -> None:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise UserError(f"{name}={value!r} is not a whole number") from error
    if not least <= number <= 1000:
        raise UserError(f"{name}={number} must be in [{least}, 1000]")


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else [value]


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _sha256(array: np.ndarray) -> str:
    # With the shape: other pictures may have the same bytes.
    shape = f"{array.shape} {array.dtype} ".encode()
    return hashlib.sha256(shape + np.ascontiguousarray(array).tobytes()).hexdigest()
