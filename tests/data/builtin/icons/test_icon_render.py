import io

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.builtin.icons.icon_set import Drawing
from imagen_jax.data.builtin.icons.render import render
from imagen_jax.data.source import BadItem

RED = '<rect x="0" y="0" width="8" height="8" fill="red"/>'  # the upper left quarter


def pixels(picture, size=16):
    with Image.open(io.BytesIO(render(picture, size))) as image:
        assert image.format == "PNG"
        array = np.asarray(image.convert("RGBA"))
    assert (array[..., 3] == 255).all() and array.shape[:2] == (size, size)
    return array[..., :3].astype(int)


def red(picture, size=16):
    """Where the picture is red, `[size, size]` bool; all else is white."""
    array = pixels(picture, size)
    found = (array == [255, 0, 0]).all(-1)
    assert (array[~found] == 255).all()
    return found


def quarter(down, across, size=16):
    found = np.zeros((size, size), bool)
    half = size // 2
    found[down * half : (down + 1) * half, across * half : (across + 1) * half] = True
    return found


def drawing(body=RED, left=0, top=0, width=16, height=16, **turns):
    return Drawing(body, left, top, width, height, **turns)


@pytest.mark.parametrize("size", [2, 16, 64, 300])
def test_any_size_on_white(size):
    np.testing.assert_array_equal(red(drawing(), size), quarter(0, 0, size))


@pytest.mark.parametrize(
    ("turns", "place"),
    [
        ({"quarter_turns": 1}, (0, 1)),
        ({"quarter_turns": 2}, (1, 1)),
        ({"quarter_turns": 3}, (1, 0)),
        ({"flip_horizontal": True}, (0, 1)),
        ({"flip_vertical": True}, (1, 0)),
        ({"flip_horizontal": True, "flip_vertical": True}, (1, 1)),
        # The flip comes first, then the turn.
        ({"flip_horizontal": True, "quarter_turns": 1}, (1, 1)),
    ],
)
def test_turns_and_flips(turns, place):
    np.testing.assert_array_equal(red(drawing(**turns)), quarter(*place))


def test_a_view_box_lies_in_the_middle_and_cuts_what_reaches_out():
    wide = red(drawing('<rect x="-99" y="-99" width="999" height="999" fill="red"/>', height=8))
    expected = np.zeros((16, 16), bool)
    expected[4:12] = True
    np.testing.assert_array_equal(wide, expected)
    # A quarter turn of it is a high one, with what was at its left above.
    left = drawing('<rect width="8" height="8" fill="red"/>', height=8, quarter_turns=1)
    expected = np.zeros((16, 16), bool)
    expected[:8, 4:12] = True
    np.testing.assert_array_equal(red(left), expected)


def test_a_view_box_may_begin_anywhere():
    shifted = drawing('<rect x="-4" y="6" width="8" height="8" fill="red"/>', left=-4, top=6)
    np.testing.assert_array_equal(red(shifted), quarter(0, 0))


def test_the_current_colour_is_black():
    array = pixels(drawing('<rect width="16" height="16" fill="currentColor"/>'))
    assert (array == 0).all()


@pytest.mark.parametrize("filtered", ["", ' filter="url(#f)"'])
def test_edges_are_smooth_also_through_a_filter(filtered):
    body = (
        '<defs><filter id="f"><feOffset dx="0" dy="0"/></filter></defs>'
        f'<g{filtered}><path d="M0 0H16L0 16Z"/></g>'
    )
    diagonal = pixels(drawing(body), 64)[:, :, 0][range(64), range(63, -1, -1)]
    assert (np.abs(diagonal - 127) < 40).all()


def test_no_fonts_of_the_system():
    text = '<text x="0" y="12" font-size="12">a</text>'
    assert (pixels(drawing(text), 64) == 255).all()


def test_a_damaged_drawing_is_a_bad_item():
    with pytest.raises(BadItem, match="resvg") as caught:
        render(drawing("<rect"), 16)
    assert caught.value.kind == "damaged drawing"


def test_a_picture_file_lies_in_the_middle(tmp_path):
    image = Image.new("RGBA", (32, 16), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 16, 16))  # the left half is transparent
    image.save(tmp_path / "a.webp", lossless=True)
    expected = np.zeros((16, 16), bool)
    expected[4:12, 8:] = True
    np.testing.assert_array_equal(red(tmp_path / "a.webp"), expected)
    large = pixels(tmp_path / "a.webp", 320)
    assert (large[80:240, 165:] == [255, 0, 0]).all() and (large[:80] == 255).all()


def test_damaged_and_lost_files_are_bad_items(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(BadItem) as caught:
        render(tmp_path / "a.png", 16)
    assert caught.value.kind == "not a picture"
    with pytest.raises(BadItem) as caught:
        render(tmp_path / "b.png", 16)
    assert caught.value.kind == "file is gone"
