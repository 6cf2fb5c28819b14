"""A user's own picture: a PIL image gets what its file gets, anything else a clear error."""

import io
import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.sampling.low_res_image import load_low_res_image

SMOOTH = np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 3)), np.ones((4, 4, 1))).astype(
    np.uint8
)


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def transparent():
    rgba = Image.fromarray(SMOOTH).convert("RGBA")
    rgba.putalpha(100)
    return rgba


def sixteen_bits():
    return Image.fromarray(SMOOTH[..., 0].astype(np.uint16) * 257)


PICTURES = {
    "rgb": (lambda: Image.fromarray(SMOOTH), {}),
    **{f"exif {i}": (lambda: Image.fromarray(SMOOTH), oriented(i)) for i in range(1, 9)},
    "16 bit": (sixteen_bits, {}),
    "32 bit": (lambda: Image.fromarray(SMOOTH[..., 0].astype(np.int32) * 257), {"format": "TIFF"}),
    "16 bit, turned": (sixteen_bits, oriented(6)),
    "transparent": (transparent, {}),
    "palette": (lambda: Image.fromarray(SMOOTH).quantize(8), {"transparency": 2}),
    "grey": (lambda: Image.fromarray(SMOOTH[..., 0]), {}),
    "grey, transparent": (lambda: transparent().convert("LA"), {}),
    "two values": (lambda: Image.fromarray(SMOOTH[..., 0] > 99), {}),
    "ink": (lambda: Image.fromarray(SMOOTH).convert("CMYK"), {"format": "TIFF"}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_pil_image_gets_what_its_file_gets(name, tmp_path):
    make, options = PICTURES[name]
    path = tmp_path / "picture"
    make().save(path, **{"format": "PNG"} | options)
    expected = load_low_res_image(path, 8, 8)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(load_low_res_image(opened, 8, 8), expected)
        opened.load()
        np.testing.assert_array_equal(load_low_res_image(opened, 8, 8), expected)
    assert expected.std() > 10
    if not options:  # what is in memory is what would be written
        np.testing.assert_array_equal(load_low_res_image(make(), 8, 8), expected)


def test_a_turned_picture_is_upright(caplog):
    data = io.BytesIO()
    Image.fromarray(SMOOTH).save(data, "PNG", **oriented(6))
    with Image.open(data) as image:
        turned = load_low_res_image(image, 16, 12)
    np.testing.assert_array_equal(turned, np.rot90(SMOOTH, -1))
    assert not caplog.records  # 12x16 once it is upright: nothing is cut


def test_arrays_of_any_library():
    expected = load_low_res_image(SMOOTH, 8, 8)

    class Tensor:  # as PyTorch's: another shape attribute, and an array on request
        def __array__(self, dtype=None, copy=None):
            return SMOOTH

    for array in (jnp.asarray(SMOOTH), Tensor(), SMOOTH[::1, ::1]):
        np.testing.assert_array_equal(load_low_res_image(array, 8, 8), expected)


class OnGpu:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert a tensor on a GPU")


def cut_short():
    data = io.BytesIO()
    Image.fromarray(SMOOTH.repeat(20, 0)).save(data, "BMP")
    return Image.open(io.BytesIO(data.getvalue()[:3000]))


def closed():
    image = Image.fromarray(SMOOTH)
    image.close()
    return image


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.fromarray(SMOOTH[..., 0].astype(np.float32)), "'F' .* floating-point"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (cut_short(), "cannot be read as a picture: .*truncated"),
        (closed(), "closed|no pixels|cannot be read"),
        (SMOOTH / 255, "uint8, not .* float64"),
        (SMOOTH > 9, "uint8, not .* bool"),
        (SMOOTH.astype(object), "uint8, not .* object"),
        (jnp.asarray(SMOOTH, jnp.float32), "uint8, not .* float32"),
        (SMOOTH[None], r"not \[1, 12, 16, 3\]"),
        (SMOOTH[..., 0], r"not \[12, 16\]"),
        (SMOOTH.transpose(2, 0, 1), r"not \[3, 12, 16\]"),
        (SMOOTH[:0], r"not \[0, 16, 3\]"),
        (OnGpu(), "cannot be read as an array: can't convert a tensor on a GPU"),
        (SMOOTH.tolist(), r"a PIL image or an array, not .* \(list\)"),
        (5, r"not 5 \(int\)"),
        (b"bytes", r"not b'bytes' \(bytes\)"),
        (io.BytesIO(), r"\(BytesIO\)"),
        (Image, r"\(module\)"),
        ("", "does not exist|is a directory"),
        ("/dev/zero", "is a device"),
        (os.curdir, "is a directory"),
    ],
)
def test_what_is_no_picture(picture, message):
    with pytest.raises(UserError, match=message) as error:
        load_low_res_image(picture, 8, 8)
    assert len(str(error.value)) < 500
