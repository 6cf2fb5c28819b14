"""PNG files with metadata, and labelled grids and tables of pictures."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from imagen_jax.files import write_atomically

PADDING = 4
FONT_SIZE = 14
LINE_HEIGHT = FONT_SIZE + 4
LABEL_LINES = 2
# Smaller pictures of a grid are enlarged to at least half of this side in pixels.
MIN_SIDE = 128
# A grid of more pixels a side is written as pages, which show large pictures reduced to at most
# this side.
PAGE_SIDE = 4096
REDUCED_SIDE = 256


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
    # The picture comes last: where it is, the rest is, too.
    if metadata is not None:
        text = printable(json.dumps(metadata, indent=2, ensure_ascii=False), keep_lines=True)
        write_atomically(path.with_suffix(".json"), text.encode("utf-8") + b"\n")
    write_atomically(path, encode_png(picture, metadata))


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


@dataclasses.dataclass(frozen=True)
class GridLine:
    """A line of a grid: pictures of one row, all or, if they are too many for a line, a part.

    Attributes:
      row: whose pictures they are.
      columns: the places of the pictures in the row.
    """

    row: int
    columns: range


@dataclasses.dataclass(frozen=True)
class GridLayout:
    """How many pictures are laid out; see `grid_layout`.

    Attributes:
      pages: the lines of each page.
      reduction: whole factor by which pictures are reduced on a page.
    """

    pages: tuple[tuple[GridLine, ...], ...]
    reduction: int


def grid_layout(rows: int, columns: int, height: int, width: int) -> GridLayout:
    """Lays out `rows` x `columns` pictures of a size on pages of at most about `PAGE_SIDE`."""
    lines_here, columns_here = _fitting_on_page(height, width)
    reduction = 1
    if rows > lines_here or columns > columns_here:
        reduction = max(1, -(-max(height, width) // REDUCED_SIDE))
        lines_here, columns_here = _fitting_on_page(height // reduction, width // reduction)
    lines = [
        GridLine(row, range(start, min(start + columns_here, columns)))
        for row in range(rows)
        for start in range(0, columns, columns_here)
    ]
    starts = range(0, len(lines), lines_here)
    return GridLayout(tuple(tuple(lines[i : i + lines_here]) for i in starts), reduction)


def _fitting_on_page(height: int, width: int) -> tuple[int, int]:
    """Lines and columns of pictures of a size that fit on a page, each at least 1."""
    factor = _enlargement(height, width)
    line = height * factor + 2 * PADDING + LABEL_LINES * LINE_HEIGHT
    column = width * factor + PADDING
    return max(1, PAGE_SIDE // line), max(1, PAGE_SIDE // column)


def reduced(picture: np.ndarray, factor: int) -> np.ndarray:
    """`[H, W, 3]` uint8 as `[H // factor, W // factor, 3]`: means of squares."""
    if factor == 1:
        return picture
    from PIL import Image

    height, width = (side // factor * factor for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture[:height, :width]).reduce(factor))


def _enlargement(height: int, width: int) -> int:
    return max(1, MIN_SIDE // min(height, width))


def labelled_grid(
    pictures: np.ndarray | Sequence[Sequence[np.ndarray]], labels: Sequence[str]
) -> np.ndarray:
    """One row of pictures per label, the label above its row.

    Small pictures are enlarged by a whole factor without smoothing, so that labels fit.

    Args:
      pictures: rows of `[H, W, 3]` uint8, all of one size; a row may be shorter than others.
      labels: one per row; any text, cut to two lines.

    Returns:
      `[H', W', 3]` uint8.
    """
    from PIL import Image, ImageDraw

    height, width = pictures[0][0].shape[:2]
    columns = max(len(row) for row in pictures)
    factor = _enlargement(height, width)
    height, width = height * factor, width * factor
    font = _font()
    texts = [
        _wrap(printable(label), columns * (width + PADDING) - PADDING, font) for label in labels
    ]
    label_heights = [len(lines) * LINE_HEIGHT for lines in texts]
    total_height = len(texts) * (height + 2 * PADDING) + sum(label_heights) + PADDING
    canvas = Image.new("RGB", (columns * (width + PADDING) + PADDING, total_height), "white")
    draw = ImageDraw.Draw(canvas)
    y = PADDING
    for row, lines in zip(pictures, texts, strict=True):
        for line in lines:
            draw.text((PADDING, y), line, fill="black", font=font)
            y += LINE_HEIGHT
        for column, picture in enumerate(row):
            x = PADDING + column * (width + PADDING)
            large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
            canvas.paste(Image.fromarray(large), (x, y))
        y += height + 2 * PADDING
    return np.asarray(canvas)


def labelled_table(
    pictures: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    framed: Collection[tuple[int, int]] = (),
) -> np.ndarray:
    """A table of pictures: labels to the left of its rows and above its columns.

    Args:
      pictures: rows of `[H, W, 3]` uint8, all of one size, as many in each row as there are
        columns. Small ones are enlarged as in `labelled_grid`.
      row_labels, column_labels: any text, cut to two lines.
      framed: (row, column) of the pictures that get an orange frame.

    Returns:
      `[H', W', 3]` uint8.
    """
    from PIL import Image, ImageDraw

    height, width = pictures[0][0].shape[:2]
    factor = _enlargement(height, width)
    height, width = height * factor, width * factor
    font = _font()
    left = max(width, MIN_SIDE) + 2 * PADDING
    rows = [_wrap(printable(label), left - 2 * PADDING, font) for label in row_labels]
    columns = [_wrap(printable(label), width, font) for label in column_labels]
    top = max(map(len, columns), default=0) * LINE_HEIGHT + 2 * PADDING
    cell_height, cell_width = height + 2 * PADDING, width + 2 * PADDING
    size = left + cell_width * len(columns), top + cell_height * len(rows)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)

    def write(lines: Sequence[str], x: int, y: int) -> None:
        for number, line in enumerate(lines):
            draw.text((x, y + number * LINE_HEIGHT), line, fill="black", font=font)

    for column, lines in enumerate(columns):
        write(lines, left + column * cell_width + PADDING, PADDING)
    for row, lines in enumerate(rows):
        y = top + row * cell_height
        write(lines, PADDING, y + (cell_height - len(lines) * LINE_HEIGHT) // 2)
        for column, picture in enumerate(pictures[row]):
            x = left + column * cell_width
            if (row, column) in framed:
                draw.rectangle((x, y, x + cell_width - 1, y + cell_height - 1), fill="#f28e2b")
            large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
            canvas.paste(Image.fromarray(large), (x + PADDING, y + PADDING))
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
