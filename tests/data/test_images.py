import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import images
from imagen_jax.data.images import decode_crop, decode_image, resize_uint8
from imagen_jax.data.source import BadItem

LEFT, RIGHT = (200, 40, 20), (20, 60, 210)


def halves(width: int = 48, height: int = 48) -> Image.Image:
    """Left half one colour, right half another."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = LEFT, RIGHT
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def check_halves(decoded: np.ndarray, tolerance: int, left=LEFT, right=RIGHT) -> None:
    assert decoded.dtype == np.uint8
    for columns, colour in ((slice(1, 7), left), (slice(9, 15), right)):
        assert np.abs(decoded[:, columns].astype(int) - np.array(colour)).max() <= tolerance


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
def test_lossless_formats(kind):
    check_halves(decode_image(encode(halves(), kind), 16), 0)


@pytest.mark.parametrize(("kind", "options"), [("jpeg", {"quality": 95}), ("webp", {})])
def test_lossy_formats(kind, options):
    check_halves(decode_image(encode(halves(), kind, **options), 16), 20)


def test_palette_and_animation_give_the_first_frame():
    second = Image.new("RGB", (48, 48), (0, 255, 0))
    data = encode(halves(), "gif", save_all=True, append_images=[second])
    check_halves(decode_image(data, 16), 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    # The stored pixels are the upright picture transformed by the inverse of the orientation.
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = halves() if undo is None else halves().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    check_halves(decode_image(encode(stored, "png", exif=exif), 16), 0)


def test_transparency_is_white():
    image = halves().convert("RGBA")
    image.paste((0, 0, 0, 0), (24, 0, 48, 48))
    check_halves(decode_image(encode(image, "png"), 16), 0, right=(255, 255, 255))
    half = Image.new("RGBA", (16, 16), (0, 0, 0, 128))
    assert np.abs(decode_image(encode(half, "png"), 16).astype(int) - 127).max() <= 1


def test_transparent_palette_and_gray():
    palette = halves().quantize(4)
    data = encode(palette, "png", transparency=palette.getpixel((47, 0)))
    check_halves(decode_image(data, 16), 0, right=(255, 255, 255))
    gray = Image.new("LA", (16, 16), (90, 0))
    assert (decode_image(encode(gray, "png"), 16) == 255).all()


def test_sixteen_bits():
    values = np.full((16, 16), 200 * 257, np.uint16)
    values[:, 8:] = 65535
    decoded = decode_image(encode(Image.fromarray(values), "png"), 16)
    check_halves(decoded, 0, left=(200, 200, 200), right=(255, 255, 255))


def test_cmyk():
    # Pillow's plain conversion to CMYK and back is exact; JPEG is not.
    data = encode(halves().convert("CMYK"), "jpeg", quality=95)
    check_halves(decode_image(data, 16), 24)


def test_floating_point_is_refused():
    image = Image.fromarray(np.zeros((8, 8), np.float32))
    with pytest.raises(BadItem, match="floating"):
        decode_image(encode(image, "tiff"), 8)


def test_the_centre_is_cropped_not_squeezed():
    # A wide picture with a disc in the middle: the disc stays round.
    y, x = np.mgrid[:64, :160] + 0.5
    disc = np.hypot(x - 80, y - 32) < 24
    data = encode(Image.fromarray((disc * 255).astype(np.uint8)), "png")
    for picture in (data, encode(Image.fromarray((disc.T * 255).astype(np.uint8)), "png")):
        decoded = decode_image(picture, 32)[..., 0] > 127
        assert decoded.any(0).sum() == decoded.any(1).sum() == 24


def test_tiny_and_large_pictures():
    assert (decode_image(encode(Image.new("RGB", (1, 1), LEFT), "png"), 16) == LEFT).all()
    check_halves(decode_image(encode(halves(1200, 800), "jpeg", quality=95), 16), 20)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_truncated_pictures_are_bad(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    for cut in (0, 10, len(data) // 2):
        with pytest.raises(BadItem):
            decode_image(data[:cut], 16)
    with pytest.raises(BadItem) as caught:
        decode_image(b"no picture at all", 16)
    assert caught.value.kind == "not a picture"


def test_two_views_in_one_file_give_the_first():
    second = Image.new("RGB", (48, 48), (0, 255, 0))
    data = encode(halves(), "mpo", save_all=True, append_images=[second], quality=95)
    check_halves(decode_image(data, 16), 20)


def test_a_decompression_bomb_is_bad(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadItem, match="Bomb"):
        decode_image(encode(Image.new("RGB", (64, 64)), "png"), 16)


def test_too_many_pixels_are_bad():
    data = encode(Image.new("P", (64, 65)), "png")
    with pytest.raises(BadItem, match=r"64x65 pixels.*config\.data\.max_pixels=4159") as caught:
        decode_image(data, 16, max_pixels=64 * 65 - 1)
    assert caught.value.kind == "too many pixels"
    assert decode_image(data, 16, max_pixels=64 * 65).shape == (16, 16, 3)


def test_pixels_of_a_jpeg_count_after_it_is_reduced():
    large = halves(1024, 1024)
    limit = {"max_pixels": 300_000}
    check_halves(decode_image(encode(large, "jpeg", quality=95), 16, **limit), 20)
    # The decoder of a progressive one keeps all of it in memory.
    with pytest.raises(BadItem, match="1024x1024"):
        decode_image(encode(large, "jpeg", progressive=True), 16, **limit)


def test_heic_without_the_plugin_names_it(monkeypatch):
    monkeypatch.setattr(images, "_formats", lambda: {"PNG": (".png",)})
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    with pytest.raises(BadItem, match=r"imagen-jax\[heif\]") as caught:
        decode_image(head, 16)
    assert "extra heif" in caught.value.kind


@pytest.mark.slow
def test_heic_with_the_plugin():
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    images._formats.cache_clear()
    assert ".heic" in images.picture_endings()
    check_halves(decode_image(encode(halves(), "heif", quality=95), 16), 20)
    assert images.stored_size(encode(halves(48, 32), "heif")) == (48, 32)


def test_avif():
    check_halves(decode_image(encode(halves(), "avif", quality=95), 16), 20)


MODES = ("1", "L", "LA", "P", "P with transparency", "RGB", "RGBA", "CMYK", "I;16")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("width", "height"), [(64, 96), (61, 97), (300, 40), (12, 12)])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_large_pictures_in_strips_look_the_same(monkeypatch, mode, width, height, orientation):
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)
    image = Image.fromarray(smooth)
    options = {"exif": Image.Exif()}
    options["exif"][0x0112] = orientation
    if mode == "I;16":
        image = Image.fromarray(smooth[..., 0].astype(np.uint16) * 257)
    elif mode.startswith("P"):
        image = image.quantize(64)
        if "transparency" in mode:
            options["transparency"] = 5
    elif "A" in mode:
        image.putalpha(Image.fromarray(smooth[..., 2]))
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    data = encode(image, "tiff" if mode == "CMYK" else "png", **options)
    shapes = ((8, 8), (16, 24), (31, 31))
    plain = [decode_crop(data, *shape).astype(int) for shape in shapes]
    monkeypatch.setattr(images, "_LARGE", 0)
    monkeypatch.setattr(images, "_STRIP", 500)
    for shape, expected in zip(shapes, plain, strict=True):
        difference = np.abs(decode_crop(data, *shape) - expected)
        if (width, height) == (64, 96) and shape == (8, 8):
            assert difference.max() == 0  # a whole factor
        # Otherwise the picture is reduced twice, which shows most at hard edges.
        hard = mode in ("1", "P", "P with transparency")
        assert difference.mean() < (6 if hard else 2)


def test_large_pictures_take_little_memory():
    """A palette and a 16-bit picture of 67 million pixels, of 4 bytes each at the most."""
    script = """
import io, resource
from PIL import Image
from imagen_jax.data.images import decode_image

pictures = []
for mode, options in (("P", {"transparency": bytes(16)}), ("I;16", {})):
    stream = io.BytesIO()
    Image.new(mode, (8192, 8192)).save(stream, "PNG", compress_level=1, **options)
    pictures.append(stream.getvalue())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in pictures:
    decode_image(data, 64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, before)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grown, before = map(int, run.stdout.split())
    # Writing them took 128 MB, on top of which reading may take as much again.
    assert grown < 160 << 10, f"{grown} kB above {before} kB"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((64, 64), (16, 16)),
        ((96, 40), (24, 20)),
        ((48, 48), (32, 32)),
        ((136, 136), (64, 64)),
        ((16, 16), (64, 64)),
        ((20, 64), (50, 16)),
    ],
)
def test_resize_follows_the_rule_of_training(old, new):
    from imagen_jax.diffusion.resize import resize

    image = np.random.default_rng(0).integers(0, 256, (*old, 3), np.uint8)
    expected = np.asarray(resize(image[None].astype(np.float32), *new))[0]
    difference = np.abs(resize_uint8(image, *new).astype(float) - expected)
    # Rounded once if both factors are whole, else once along each axis.
    whole = all(o % n == 0 for o, n in zip(old, new, strict=True))
    assert difference.max() <= (0.501 if whole else 1.01)
