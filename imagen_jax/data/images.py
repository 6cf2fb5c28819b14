"""Decodes picture files to uint8 RGB arrays of a given shape, by cropping and resizing."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from imagen_jax.data.source import BadItem

if TYPE_CHECKING:
    from PIL import Image

WHITE = (255, 255, 255)

# Common picture formats (MPO is read as JPEG). Of Pillow's other formats, some start external
# programs (EPS) and some are not pictures.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


def decode_image(
    data: bytes, image_size: int, check_size: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Decodes a picture file to a square `[image_size, image_size, 3]` uint8; see `decode_crop`."""
    return decode_crop(data, image_size, image_size, check_size)


def decode_crop(
    data: bytes,
    height: int,
    width: int,
    check_size: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Decodes a picture file to `[height, width, 3]` uint8.

    Takes the first frame, turns it upright by its EXIF orientation, puts transparency over white,
    reduces 16 bits to 8, crops the largest centred rectangle of the wanted aspect ratio, and
    resizes it as `resize_uint8` does.

    Args:
      data: the bytes of the file.
      height, width: of the result.
      check_size: called with width and height of the stored picture before it is decoded. For a
        result that is not square, the size is that of the upright picture. Its exceptions are
        passed on.

    Raises:
      BadItem: the bytes are not a whole picture in a supported format, the picture has more pixels
        than Pillow's limit of 179 million, or its values have no known range (floating point).
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadItem("the file is empty", "empty file")
    try:
        _silence_warnings()
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            # A square result does not depend on the orientation.
            size = image.size if height == width else upright_size(image)
            if check_size is not None:
                check_size(*size)
            if image.format == "JPEG":
                # The decoder averages by a factor of 2, 4 or 8 itself, which makes large
                # photographs several times faster. Twice the size remains for the resize.
                minimum = (2 * width, 2 * height)
                image.draft(None, minimum if size == image.size else minimum[::-1])
            image.load()
            cropped = crop_to_aspect(upright_rgb(image), height, width)
    except BadItem:
        raise
    except UnidentifiedImageError as error:
        raise BadItem(f"{type(error).__name__}: not a picture", "not a picture") from error
    except Image.DecompressionBombError as error:
        raise BadItem(f"{type(error).__name__}: {error}", "too many pixels") from error
    # On malformed files Pillow's readers raise many types: OSError, SyntaxError, struct.error,
    # zlib.error and others.
    except Exception as error:
        kind = "truncated picture" if "truncated" in str(error) else "damaged picture"
        raise BadItem(f"{type(error).__name__}: {error}", kind) from error
    return np.asarray(_resize(cropped, height, width))


def stored_size(data: bytes, formats: tuple[str, ...] = _FORMATS) -> tuple[int, int]:
    """Width and height of a picture file once it is upright, from its header without decoding.

    A PNG file that stores its orientation after its pixels, which is rare, counts as upright.

    Raises:
      BadItem: the bytes do not start with a picture header of one of the formats.
    """
    from PIL import Image

    try:
        _silence_warnings()
        with Image.open(io.BytesIO(data), formats=formats) as image:
            return upright_size(image)
    # As in `decode_crop`.
    except Exception as error:
        raise BadItem(f"{type(error).__name__}: {error}", "not a picture") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened picture after it is turned by its EXIF orientation."""
    from PIL import ExifTags, Image

    # Pillow turns TIFF pictures when it opens them.
    if image.format == "TIFF":
        return image.size
    try:
        # The method of the base class, since that of PNG decodes the picture.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # malformed metadata, as in `_upright`
        orientation = None
    width, height = image.size
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


@functools.cache
def _silence_warnings() -> None:
    """Silences Pillow's warnings about large pictures below its limit and unusual palettes."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def resize_uint8(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a `[H, W, 3]` uint8 picture to `[height, width, 3]` uint8.

    Each axis is resized separately: a box mean when it shrinks by a whole factor, an antialiased
    triangle filter when it shrinks by another factor, half-pixel bilinear when it grows. This is
    the rule of `diffusion.augmentation.resize`, up to rounding.
    """
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    return np.asarray(_resize(Image.fromarray(image), height, width))


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    from PIL import Image

    if image.size == (width, height):
        return image
    factors = image.width // width, image.height // height
    if image.size == (factors[0] * width, factors[1] * height):
        return image.reduce(factors)  # the same mean as BOX, two to four times as fast
    # Pillow scales the support of BILINEAR by the factor when a picture shrinks.
    across, down = (
        Image.Resampling.BOX if old % new == 0 else Image.Resampling.BILINEAR
        for old, new in zip(image.size, (width, height), strict=True)
    )
    if across != down:
        image = image.resize((width, image.height), across)
    return image.resize((width, height), down)


def crop_to_aspect(image: Image.Image, height: int, width: int) -> Image.Image:
    """Crops the largest centred rectangle with the aspect ratio of `[height, width]`.

    The sides are rounded to whole pixels.
    """
    across = min(image.width, max(1, round(image.height * width / height)))
    down = min(image.height, max(1, round(image.width * height / width)))
    left, top = (image.width - across) // 2, (image.height - down) // 2
    return image.crop((left, top, left + across, top + down))


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turns a picture of any mode upright by its EXIF orientation and converts it to 8-bit RGB.

    Raises:
      BadItem: its values have no known range (floating point).
      Exception: of any type, if a picture that is not decoded yet is damaged.
    """
    return _to_rgb(_upright(image))


def over_white(image: Image.Image) -> Image.Image:
    """Converts a picture with transparency, of any mode, to RGB over white."""
    from PIL import Image

    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ExifTags, ImageOps

    try:
        # Most pictures are upright and need no copy.
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # malformed metadata, which is no reason to reject the picture
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "F":
        raise BadItem("floating-point pictures have no known range", "floating-point picture")
    if image.mode.startswith("I"):  # 16-bit values in 16-bit or 32-bit integers
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")
