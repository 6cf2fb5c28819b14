"""Encoded pictures of any kind to square uint8 RGB arrays, without distorting them."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from imagen_jax.data.sources import BadItem

if TYPE_CHECKING:
    from PIL import Image

WHITE = (255, 255, 255)


# Formats of photographs. Others that Pillow knows start programs (EPS) or are no pictures.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "MPO")


def decode_image(
    data: bytes, image_size: int, check_size: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Decodes a picture file to `[image_size, image_size, 3]` uint8.

    The first frame, upright by its EXIF orientation, transparency over white, 16 bits to 8, the
    largest centred square of it, resized as `resize_uint8` does.

    Args:
      data: the bytes of the file.
      image_size: side of the square.
      check_size: called with width and height before anything is decoded; what it raises is
        raised.

    Raises:
      BadItem: the bytes are not a whole picture in a format that Pillow reads, are more pixels
        than memory should be spent on (Pillow's limit of 179 million), or have values of no known
        range (floating point).
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadItem("the file is empty", "empty file")
    try:
        _quiet()
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if check_size is not None:
                check_size(*image.size)
            if image.format == "JPEG":
                # The decoder itself averages down by 2, 4 or 8: phone pictures are read several
                # times faster, and twice the wanted size stays for the resize.
                image.draft(None, (2 * image_size, 2 * image_size))
            image.load()
            square = crop_square(_to_rgb(_upright(image)))
    except BadItem:
        raise
    except UnidentifiedImageError as error:
        raise BadItem(f"{type(error).__name__}: not a picture", "not a picture") from error
    except Image.DecompressionBombError as error:
        raise BadItem(f"{type(error).__name__}: {error}", "too many pixels") from error
    # Pillow's readers raise whatever a malformed file makes them stumble over (OSError,
    # SyntaxError, struct.error, zlib.error ...).
    except Exception as error:
        kind = "truncated picture" if "truncated" in str(error) else "damaged picture"
        raise BadItem(f"{type(error).__name__}: {error}", kind) from error
    return np.asarray(_resize(square, image_size))


@functools.cache
def _quiet() -> None:
    """Pillow warns of pictures between half its limit and the limit, and of odd palettes."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def resize_uint8(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes a square `[S, S, 3]` uint8 picture to `[size, size, 3]` uint8.

    Box mean down by whole factors, antialiased triangle otherwise, half-pixel bilinear up: the
    rule of `diffusion.augmentation.resize`, to rounding.
    """
    from PIL import Image

    if image.shape[0] == size:
        return image
    return np.asarray(_resize(Image.fromarray(image), size))


def _resize(image: Image.Image, size: int) -> Image.Image:
    from PIL import Image

    side = image.width
    if side == size:
        return image
    # Pillow widens the triangle of BILINEAR by the factor when it makes pictures smaller.
    method = Image.Resampling.BOX if side % size == 0 else Image.Resampling.BILINEAR
    return image.resize((size, size), method)


def crop_square(image: Image.Image) -> Image.Image:
    """The largest centred square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def over_white(image: Image.Image) -> Image.Image:
    """A picture with transparency, of any mode, as RGB over white."""
    from PIL import Image

    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ExifTags, ImageOps

    try:
        # Most are upright, and need no copy.
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # the metadata is malformed, which is no reason to lose the picture
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "F":
        raise BadItem("floating-point pictures have no known range", "floating-point picture")
    if image.mode.startswith("I"):  # 16 bits, in an integer type of 16 or 32
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")
