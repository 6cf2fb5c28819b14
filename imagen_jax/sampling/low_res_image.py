"""A user's own picture as the input of a super-resolution stage."""

from __future__ import annotations

import io
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from imagen_jax.data.images import (
    crop_to_aspect,
    decode_crop,
    resize_uint8,
    upright_rgb,
    upright_size,
)
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError, brief
from imagen_jax.foreign_files import read_bytes

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger("imagen_jax")


def load_low_res_image(picture: Any, height: int, width: int) -> np.ndarray:
    """`picture` as `[height, width, 3]` uint8.

    Files and PIL images are read as training reads files: upright, transparency over white, 16 bits
    reduced to 8, cut around the centre.

    Args:
      picture: a file, a PIL image, or an array `[H, W, 3]` uint8 of NumPy, JAX or PyTorch.
      height, width: of the result.

    Raises:
      UserError: a missing or unreadable file, a damaged or empty PIL image or one of floats, an
        array of another kind, something else.
    """
    from PIL import Image

    if isinstance(picture, (str, os.PathLike)):
        return _from_file(epath.Path(picture), height, width)
    if isinstance(picture, Image.Image):
        return _from_image(picture, height, width)
    if hasattr(picture, "__array__"):
        return _from_image(Image.fromarray(_checked_array(picture)), height, width)
    raise UserError(
        f"a low-resolution image is a file, a PIL image or an array, not {brief(picture)} "
        f"({type(picture).__name__})"
    )


def _from_file(path: epath.Path, height: int, width: int) -> np.ndarray:
    from PIL import Image

    if not path.exists():
        raise UserError(f"low-resolution image {path} does not exist")
    data = read_bytes(path)
    try:
        cut = decode_crop(data, height, width)
    except BadItem as error:
        raise UserError(
            f"low-resolution image {path} cannot be read as a picture: {error}"
        ) from error
    with Image.open(io.BytesIO(data)) as image:
        _warn_if_cut(upright_size(image), height, width)
    return cut


def _from_image(image: Image.Image, height: int, width: int) -> np.ndarray:
    if not all(image.size):
        raise UserError(f"the low-resolution image has no pixels: its size is {image.size}")
    try:
        image.load()
        rgb = upright_rgb(image)
    # A picture is decoded when it is first used, and damage raises as many types as in a file.
    except Exception as error:
        raise UserError(
            f"the low-resolution image of mode {image.mode!r} cannot be read as a picture: {error}"
        ) from error
    _warn_if_cut(rgb.size, height, width)
    return resize_uint8(np.asarray(crop_to_aspect(rgb, height, width)), height, width)


def _checked_array(picture: Any) -> np.ndarray:
    """An array of any library as `[H, W, 3]` uint8 of NumPy. Raises UserError."""
    try:
        array = np.asarray(picture)
    except Exception as error:  # such as a tensor on a GPU
        raise UserError(
            f"the low-resolution image ({type(picture).__name__}) cannot be read as an array: "
            f"{error}"
        ) from error
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise UserError(
            f"a low-resolution image is [H, W, 3] uint8, not {list(array.shape)} {array.dtype}"
        )
    return array


def _warn_if_cut(size: tuple[int, int], height: int, width: int) -> None:
    if size[0] * height == size[1] * width:
        return
    part = "its centred square" if height == width else f"the middle of it, {width}:{height},"
    logger.warning("the low-resolution image is %dx%d pixels; %s is used", *size, part)
