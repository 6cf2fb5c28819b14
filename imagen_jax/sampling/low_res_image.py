"""A user's own picture, read at its size or as the input of a super-resolution stage."""

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
    stored_size,
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
    return _load(picture, "low-resolution image", (height, width))


def load_picture(picture: Any, what: str) -> np.ndarray:
    """`picture` as `[H, W, 3]` uint8 of its own size, once it is upright.

    Args:
      picture: see `load_low_res_image`.
      what: begins the messages, such as "picture".

    Raises:
      UserError: see `load_low_res_image`.
    """
    return _load(picture, what, None)


def _load(picture: Any, what: str, size: tuple[int, int] | None) -> np.ndarray:
    """A picture resized to `size` (height, width), or at its own size for None."""
    from PIL import Image

    if isinstance(picture, (str, os.PathLike)):
        return _from_file(epath.Path(picture), what, size)
    if isinstance(picture, Image.Image):
        return _from_image(picture, what, size)
    if hasattr(picture, "__array__"):
        array = _checked_array(picture, what)
        return array if size is None else _from_image(Image.fromarray(array), what, size)
    raise UserError(
        f"a {what} is a file, a PIL image or an array, not {brief(picture)} "
        f"({type(picture).__name__})"
    )


def _from_file(path: epath.Path, what: str, size: tuple[int, int] | None) -> np.ndarray:
    from PIL import Image

    if not path.exists():
        raise UserError(f"{what} {path} does not exist")
    data = read_bytes(path)
    try:
        height, width = stored_size(data)[::-1] if size is None else size
        cut = decode_crop(data, height, width)
    except BadItem as error:
        raise UserError(f"{what} {path} cannot be read as a picture: {error}") from error
    if size is not None:
        with Image.open(io.BytesIO(data)) as image:
            _warn_if_cut(upright_size(image), height, width)
    return cut


def _from_image(image: Image.Image, what: str, size: tuple[int, int] | None) -> np.ndarray:
    if not all(image.size):
        raise UserError(f"the {what} has no pixels: its size is {image.size}")
    try:
        image.load()
        rgb = upright_rgb(image)
    # A picture is decoded when it is first used, and damage raises as many types as in a file.
    except Exception as error:
        raise UserError(
            f"the {what} of mode {image.mode!r} cannot be read as a picture: {error}"
        ) from error
    if size is None:
        return np.asarray(rgb)
    height, width = size
    _warn_if_cut(rgb.size, height, width)
    return resize_uint8(np.asarray(crop_to_aspect(rgb, height, width)), height, width)


def _checked_array(picture: Any, what: str) -> np.ndarray:
    """An array of any library as `[H, W, 3]` uint8 of NumPy. Raises UserError."""
    try:
        array = np.asarray(picture)
    except Exception as error:  # such as a tensor on a GPU
        raise UserError(
            f"the {what} ({type(picture).__name__}) cannot be read as an array: {error}"
        ) from error
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise UserError(f"a {what} is [H, W, 3] uint8, not {list(array.shape)} {array.dtype}")
    return array


def _warn_if_cut(size: tuple[int, int], height: int, width: int) -> None:
    if size[0] * height == size[1] * width:
        return
    part = "its centred square" if height == width else f"the middle of it, {width}:{height},"
    logger.warning("the low-resolution image is %dx%d pixels; %s is used", *size, part)
