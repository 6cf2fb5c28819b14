"""PNG files with metadata, and labelled grids of pictures."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from imagen_jax.files import write_atomically

PADDING = 4
FONT_SIZE = 14
LABEL_LINES = 2
# Smaller pictures of a grid are enlarged to at least half of this side in pixels.
MIN_SIDE = 128


def save_png(
    path: str | os.PathLike[str], picture: np.ndarray, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes a PNG.

    Args:
      picture: `[H, W, 3]` uint8.
      metadata: text entries of the file; anything but a string is written as JSON. The same
        mapping is written to a `.json` file beside the picture.
    """
    path = epath.Path(path)
    write_atomically(path, encode_png(picture, metadata))
    if metadata is not None:
        text = printable(json.dumps(metadata, indent=2, ensure_ascii=False), keep_lines=True)
        write_atomically(path.with_suffix(".json"), text.encode("utf-8") + b"\n")


def encode_png(picture: np.ndarray, metadata: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a PNG file; arguments as of `save_png`."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, value in (metadata or {}).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        info.add_itxt(name, printable(text, keep_lines=True))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def labelled_grid(pictures: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """One row of pictures per label, the label above its row.

    Small pictures are enlarged by a whole factor without smoothing, so that labels fit.

    Args:
      pictures: `[rows, columns, H, W, 3]` uint8.
      labels: one per row; any text, cut to two lines.

    Returns:
      `[H', W', 3]` uint8.
    """
    from PIL import Image, ImageDraw

    rows, columns, height, width, _ = pictures.shape
    factor = max(1, MIN_SIDE // min(height, width))
    pictures = pictures.repeat(factor, axis=2).repeat(factor, axis=3)
    height, width = height * factor, width * factor
    font = _font()
    line_height = FONT_SIZE + 4
    texts = [
        _wrap(printable(label), columns * (width + PADDING) - PADDING, font) for label in labels
    ]
    label_heights = [len(lines) * line_height for lines in texts]
    total_height = rows * (height + 2 * PADDING) + sum(label_heights) + PADDING
    canvas = Image.new("RGB", (columns * (width + PADDING) + PADDING, total_height), "white")
    draw = ImageDraw.Draw(canvas)
    y = PADDING
    for row, lines in enumerate(texts):
        for line in lines:
            draw.text((PADDING, y), line, fill="black", font=font)
            y += line_height
        for column in range(columns):
            x = PADDING + column * (width + PADDING)
            canvas.paste(Image.fromarray(pictures[row, column]), (x, y))
        y += height + 2 * PADDING
    return np.asarray(canvas)


def printable(text: str, keep_lines: bool = False) -> str:
    """`text` as valid UTF-8, by default on one line; halves of surrogate pairs become "?"."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")
    return text if keep_lines else " ".join(text.split())


def _font():
    """DejaVu Sans if the system has it (it covers more scripts), else Pillow's own font.

    Characters that the font lacks appear as empty boxes.
    """
    from PIL import ImageFont

    for name in ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf"):
        try:
            return ImageFont.truetype(name, FONT_SIZE)
        except OSError:
            continue
    return ImageFont.load_default(FONT_SIZE)


def _wrap(text: str, width: int, font) -> list[str]:
    """Splits into at most `LABEL_LINES` lines of at most `width` pixels; the rest becomes "..."."""
    lines = []
    rest = text
    while rest and len(lines) < LABEL_LINES:
        count = _fitting(rest, width, font)
        if count < len(rest):
            if len(lines) == LABEL_LINES - 1:
                count = _fitting(rest, width - int(font.getlength("...")), font)
                return [*lines, rest[:count].rstrip() + "..."]
            space = rest.rfind(" ", 0, count + 1)
            count = space if space > 0 else count
        lines.append(rest[:count].rstrip())
        rest = rest[count:].lstrip()
    return lines or [""]


def _fitting(text: str, width: int, font) -> int:
    """The number of characters of `text` that fit into `width` pixels, at least one."""
    # Characters are at least a pixel wide, which limits the search.
    low, high = 1, min(len(text), max(width, 1))
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low
