"""A user's own picture as the input of a super-resolution stage."""

from __future__ import annotations

import io
import logging
import os
from typing import Any

import numpy as np
from etils import epath

from imagen_jax.data.images import (
    crop_to_aspect,
    decode_crop,
    over_white,
    resize_uint8,
    upright_size,
)
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

logger = logging.getLogger("imagen_jax")


def load_low_res_image(picture: Any, height: int, width: int) -> np.ndarray:
    """`picture` (a file, a PIL image or `[H, W, 3]` uint8) as `[height, width, 3]` uint8.

    Files are read as training reads them: upright, transparency over white, cut around the centre.

    Raises:
      UserError: a missing or unreadable file, an array of another kind.
    """
    from PIL import Image

    if isinstance(picture, (str, os.PathLike)):
        path = epath.Path(picture)
        if not path.is_file():
            raise UserError(f"low-resolution image {path} does not exist")
        data = path.read_bytes()
        try:
            cut = decode_crop(data, height, width)
        except BadItem as error:
            raise UserError(
                f"low-resolution image {path} cannot be read as a picture: {error}"
            ) from error
        with Image.open(io.BytesIO(data)) as image:
            _warn_if_cut(upright_size(image), height, width)
        return cut
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise UserError(
                f"a low-resolution image is [H, W, 3] uint8, not {list(picture.shape)} "
                f"{picture.dtype}"
            )
        picture = Image.fromarray(picture)
    _warn_if_cut(picture.size, height, width)
    cut = crop_to_aspect(over_white(picture), height, width)
    return resize_uint8(np.asarray(cut), height, width)


def _warn_if_cut(size: tuple[int, int], height: int, width: int) -> None:
    if size[0] * height == size[1] * width:
        return
    part = "its centred square" if height == width else f"the middle of it, {width}:{height},"
    logger.warning("the low-resolution image is %dx%d pixels; %s is used", *size, part)
