"""Draws icons: on white, antialiased, as large as fits into a square."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from imagen_jax.data.builtin.icons.icon_set import Drawing
from imagen_jax.data.images import decode_crop, decode_image, stored_size
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

# The renderer does not smooth the edges of what goes through a filter. Such a drawing is made at
# twice the size, and at this side at least, and averaged down.
_FILTER = "<filter"
_FILTER_SIDE = 256


def check_renderer() -> None:
    """Raises UserError if the library that draws vectors is not installed."""
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise UserError(
            "source 'icons' needs the library resvg-py: pip install 'imagen-jax[icons]'"
        ) from error


def render(picture: Drawing | Path, size: int) -> bytes:
    """Draws a picture.

    Args:
      picture: a vector drawing, or a picture file.
      size: side of the result in pixels.

    Returns:
      A PNG file of `size` by `size` opaque pixels.

    Raises:
      BadItem: the drawing or the file is damaged.
    """
    if isinstance(picture, Drawing):
        return _render_drawing(picture, size)
    return _render_file(picture, size)


def to_svg(drawing: Drawing, size: int) -> str:
    """The drawing as a square SVG file of `size` by `size` pixels.

    The view box, turned and mirrored, lies in the middle and touches two sides at least. What
    reaches out of it is cut off; `currentColor` is black.
    """
    width, height = drawing.width, drawing.height
    side = max(width, height)
    x, y = (side - width) / 2, (side - height) / 2
    # Turning the square instead of the view box keeps its middle where it is.
    steps = []
    if drawing.quarter_turns:
        steps.append(f"rotate({90 * drawing.quarter_turns} {side / 2} {side / 2})")
    if drawing.flip_horizontal:
        steps.append(f"translate({side} 0) scale(-1 1)")
    if drawing.flip_vertical:
        steps.append(f"translate(0 {side}) scale(1 -1)")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' width="{size}" height="{size}" viewBox="0 0 {side} {side}" color="black">'
        f'<g transform="{" ".join(steps)}">'
        f'<svg x="{x}" y="{y}" width="{width}" height="{height}"'
        f' viewBox="{drawing.left} {drawing.top} {width} {height}">{drawing.body}</svg></g></svg>'
    )


def _render_drawing(drawing: Drawing, size: int) -> bytes:
    import resvg_py

    factor = max(2, _FILTER_SIDE // size) if _FILTER in drawing.body else 1
    side = factor * size
    try:
        # Text in a drawing would look different on each machine with the fonts of the system.
        png = resvg_py.svg_to_bytes(
            svg_string=to_svg(drawing, side),
            width=side,
            height=side,
            background="#ffffff",
            skip_system_fonts=True,
        )
    except ValueError as error:
        raise BadItem(f"resvg: {error}", "damaged drawing") from error
    return png if factor == 1 else _to_png(decode_image(png, size))


def _render_file(path: Path, size: int) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise BadItem(f"{path}: {error}", "file is gone") from error
    except OSError as error:
        raise BadItem(f"{path}: {error}", "file cannot be read") from error
    width, height = stored_size(data)
    scale = size / max(width, height)
    pixels = decode_crop(data, max(1, round(height * scale)), max(1, round(width * scale)))
    top, left = (size - pixels.shape[0]) // 2, (size - pixels.shape[1]) // 2
    square = np.full((size, size, 3), 255, np.uint8)
    square[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return _to_png(square)


def _to_png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
