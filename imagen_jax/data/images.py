"""Decodes picture files to uint8 RGB arrays of a given shape, by cropping and resizing."""

from __future__ import annotations

import functools
import importlib.util
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from imagen_jax.config import MAX_PIXELS
from imagen_jax.data.source import BadItem

if TYPE_CHECKING:
    from PIL import Image

WHITE = (255, 255, 255)

# Common picture formats (MPO is read as JPEG) and the endings of their files. Of Pillow's other
# formats, some start external programs (EPS) and some are not pictures.
_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
_AVIF, _HEIF = (".avif",), (".heic", ".heif", ".hif")
# Pictures that are not read, and are counted by these endings.
# fmt: off
_OTHER_ENDINGS = frozenset((
    *_AVIF, *_HEIF,
    ".jp2", ".j2k", ".jpx", ".jxl", ".svg", ".psd", ".xcf", ".tga", ".ico", ".exr", ".hdr", ".dng",
    ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".raw", ".dds", ".eps", ".pcx", ".icns", ".qoi",
))
# fmt: on
# Beginnings of the brands in the first bytes of HEIC files.
_HEIF_BRANDS = (b"hei", b"hev", b"mif", b"msf")
# A picture with more pixels is converted in strips of this many, and reduced at the same time. A
# copy of the whole in another mode takes four bytes a pixel, or eight.
_LARGE, _STRIP = 1 << 22, 1 << 20


@functools.cache
def _formats() -> dict[str, tuple[str, ...]]:
    """The formats that can be read here with their endings; two of them need plugins."""
    from PIL import features

    formats = dict(_FORMATS)
    try:
        has_avif = features.check("avif")
    except ValueError:  # unknown to Pillow before 11.3
        has_avif = False
    if has_avif or importlib.util.find_spec("pillow_avif"):
        if not has_avif:
            importlib.import_module("pillow_avif")
        formats["AVIF"] = _AVIF
    try:
        import pillow_heif
    except ImportError:
        return formats
    pillow_heif.register_heif_opener()
    return formats | {"HEIF": _HEIF}


def picture_endings() -> tuple[str, ...]:
    """The endings, such as ".jpg", of picture files that can be read here."""
    return tuple(ending for endings in _formats().values() for ending in endings)


def plugins() -> str:
    """Which formats can be read here beside the usual ones, as text; "" for none."""
    found = "-heif" if ".heic" in picture_endings() else ""
    return found if ".avif" in picture_endings() else f"{found}-without-avif"


def why_not_read(ending: str) -> str:
    """Why pictures with an ending are not read, as text; "" if it is not that of such a picture.

    Args:
      ending: such as ".heic", in lower case.
    """
    if ending not in _OTHER_ENDINGS or ending in picture_endings():
        return ""
    remedy = "convert them to JPEG or PNG"
    if ending in _HEIF:
        remedy = "pip install 'imagen-jax[heif]' to read them"
    elif ending in _AVIF:
        remedy = "pip install 'pillow>=11.3' to read them"
    return f"pictures ending in {ending} are not read: {remedy}"


def decode_image(
    data: bytes,
    image_size: int,
    check_size: Callable[[int, int], None] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes a picture file to a square `[image_size, image_size, 3]` uint8; see `decode_crop`."""
    return decode_crop(data, image_size, image_size, check_size, max_pixels)


def decode_crop(
    data: bytes,
    height: int,
    width: int,
    check_size: Callable[[int, int], None] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes a picture file to `[height, width, 3]` uint8.

    Takes the first frame, turns it upright by its EXIF orientation, puts transparency over white,
    reduces 16 bits to 8, crops the largest centred rectangle of the wanted aspect ratio, and
    resizes it as `resize_uint8` does. A large picture is first reduced by a whole factor, to no
    less than twice the result; a JPEG while it is decoded.

    Args:
      data: the bytes of the file.
      height, width: of the result.
      check_size: called with width and height of the stored picture before it is decoded. For a
        result that is not square, the size is that of the upright picture. Its exceptions are
        passed on.
      max_pixels: the most pixels that are decoded; see DataConfig.

    Raises:
      BadItem: the bytes are not a whole picture in a supported format, more than `max_pixels` would
        be decoded, or its values have no known range (floating point).
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadItem("the file is empty", "empty file")
    try:
        _silence_warnings()
        with Image.open(io.BytesIO(data), formats=tuple(_formats())) as image:
            # A square result does not depend on the orientation.
            size = image.size if height == width else upright_size(image)
            if check_size is not None:
                check_size(*size)
            if image.format == "JPEG":
                # The decoder averages by a factor of 2, 4 or 8 itself, which makes large
                # photographs several times faster. Twice the size remains for the resize.
                minimum = (2 * width, 2 * height)
                image.draft(None, minimum if size == image.size else minimum[::-1])
            _check_pixels(size, image, max_pixels)
            image.load()
            if image.width * image.height > _LARGE:
                return np.asarray(_resize_large(image, height, width))
            cropped = crop_to_aspect(upright_rgb(image), height, width)
    except BadItem:
        raise
    except UnidentifiedImageError as error:
        if ".heic" not in picture_endings() and data[4:8] == b"ftyp" and data[8:11] in _HEIF_BRANDS:
            raise BadItem(
                "HEIC pictures are read after pip install 'imagen-jax[heif]'",
                "HEIC picture, which needs the extra heif",
            ) from error
        raise BadItem(f"{type(error).__name__}: not a picture", "not a picture") from error
    except Image.DecompressionBombError as error:
        raise BadItem(f"{type(error).__name__}: {error}", "too many pixels") from error
    # On malformed files Pillow's readers raise many types: OSError, SyntaxError, struct.error,
    # zlib.error and others.
    except Exception as error:
        kind = "truncated picture" if "truncated" in str(error) else "damaged picture"
        raise BadItem(f"{type(error).__name__}: {error}", kind) from error
    return np.asarray(_resize(cropped, height, width))


def _check_pixels(stored: tuple[int, int], image: Image.Image, max_pixels: int) -> None:
    """Raises BadItem if decoding takes the memory of more than `max_pixels` pixels.

    Args:
      stored: width and height of the stored picture.
      image: about to be loaded, perhaps at a smaller size.
    """
    # The decoder of a progressive JPEG keeps all of it in memory, at whatever size it is read.
    width, height = stored if image.info.get("progressive") else image.size
    if width * height > max_pixels:
        raise BadItem(
            f"{stored[0]}x{stored[1]} pixels are more than config.data.max_pixels={max_pixels}",
            "too many pixels",
        )


def stored_size(data: bytes, formats: tuple[str, ...] | None = None) -> tuple[int, int]:
    """Width and height of a picture file once it is upright, from its header without decoding.

    A PNG file that stores its orientation after its pixels, which is rare, counts as upright.

    Raises:
      BadItem: the bytes do not start with a picture header of one of the formats (None: any).
    """
    from PIL import Image

    try:
        _silence_warnings()
        with Image.open(io.BytesIO(data), formats=formats or tuple(_formats())) as image:
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


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels of a resized picture that any of the marked pixels has a share in.

    Args:
      mask: `[H, W]` bool, the marked pixels of a picture.
      height, width: the size to which `resize_uint8` brings the picture.

    Returns:
      `[height, width]` bool.
    """
    from PIL import Image

    if mask.shape == (height, width):
        return mask
    # All weights are positive, so a sum of zeros and ones is 0 where no marked pixel is in it.
    return np.asarray(_resize(Image.fromarray(mask.astype(np.float32)), height, width)) > 0


def _resize_large(image: Image.Image, height: int, width: int) -> Image.Image:
    """Converts, reduces, turns, crops and resizes a loaded picture, without a copy of the whole."""
    from PIL import Image

    turn = _turn(image)
    if turn is not None and turn.name in _SWAPPING:
        height, width = width, height
    left, top, right, bottom = _aspect_box(image.size, height, width)
    across, down = right - left, bottom - top
    if across % width == 0 and down % height == 0:
        factors = across // width, down // height  # as in `_resize`
    else:
        # As with JPEG, twice the size remains.
        factors = max(1, across // (2 * width)), max(1, down // (2 * height))
    small = Image.new("RGB", (-(-across // factors[0]), -(-down // factors[1])))
    rows = factors[1] * max(1, _STRIP // (across * factors[1]))
    for y in range(0, down, rows):
        strip = image.crop((left, top + y, right, top + min(y + rows, down)))
        small.paste(_to_rgb(strip).reduce(factors), (0, y // factors[1]))
    # The last row and column of the reduced picture may stand for fewer pixels than the others.
    extent = across / factors[0], down / factors[1]
    resized = _resize(small, height, width, extent)
    return resized if turn is None else resized.transpose(turn)


def _resize(
    image: Image.Image, height: int, width: int, extent: tuple[float, float] | None = None
) -> Image.Image:
    """Resizes the part of a picture from its upper left corner to `extent` (all of it if None)."""
    from PIL import Image

    if extent is not None and extent != image.size:
        box = (0, 0, *extent)
        return image.resize((width, height), Image.Resampling.BILINEAR, box)
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
    return image.crop(_aspect_box(image.size, height, width))


def _aspect_box(size: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the largest centred rectangle; see `crop_to_aspect`."""
    across = min(size[0], max(1, round(size[1] * width / height)))
    down = min(size[1], max(1, round(size[0] * height / width)))
    left, top = (size[0] - across) // 2, (size[1] - down) // 2
    return left, top, left + across, top + down


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


# How a picture of each EXIF orientation is turned.
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
_TURNS |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
# Turns that swap width and height.
_SWAPPING = ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How a loaded picture is made upright; None if it is upright, as most are."""
    from PIL import ExifTags, Image

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # malformed metadata, which is no reason to reject the picture
        return None
    name = _TURNS.get(orientation)
    return Image.Transpose[name] if name else None


def _upright(image: Image.Image) -> Image.Image:
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


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
