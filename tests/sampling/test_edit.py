"""Edits of a user's picture: what is kept, what is refused, and what the cascade draws."""

import dataclasses
import hashlib
import json
import logging

import numpy as np
import pytest
from PIL import Image
from stages import opened

from imagen_jax.config import StageConfig
from imagen_jax.data.images import resize_mask, resize_uint8
from imagen_jax.errors import UserError
from imagen_jax.models import EfficientUNetConfig
from imagen_jax.sampling import Cascade, PictureFolder, Request
from imagen_jax.sampling import edit as lib
from imagen_jax.sampling.sizes import sized_shapes
from imagen_jax.sampling.tiles import stage_tiles
from imagen_jax.types import normalize_image, to_uint8

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (16, 16, 3), np.uint8)
HALF = np.zeros((16, 16), bool)
HALF[:, 8:] = True


@pytest.fixture(scope="module")
def cascade(tiny):
    return Cascade.from_artefact(tiny)


def test_every_value_survives_the_way_there_and_back():
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(normalize_image(values)), values)


def random_mask(rng):
    """Rectangles and single pixels; never all or nothing."""
    mask = rng.random((16, 16)) < rng.choice([0.0, 0.02, 0.3, 0.97])
    for _ in range(rng.integers(0, 3)):
        top, left = rng.integers(0, 14, 2)
        mask[top : top + rng.integers(1, 14), left : left + rng.integers(1, 14)] ^= True
    mask[tuple(rng.integers(0, 16, 2))] ^= True
    if mask.all() or not mask.any():
        mask[3, 5] ^= True
    return mask


def kept_at_8(mask):
    """A pixel of the base is kept if its box of four is."""
    return ~mask.reshape(8, 2, 8, 2).any((1, 3))


@pytest.mark.slow
def test_kept_pixels_are_exact_over_100_masks(cascade):
    rng = np.random.default_rng(1)
    drawn, counts = [], []
    for seed in range(100):
        mask = random_mask(rng)
        picture = rng.integers(0, 256, (16, 16, 3), np.uint8)
        result = cascade.inpaint(
            picture, mask, "a red circle", seeds=[seed], num_steps=2, resample=2, batch_size=1
        )
        base, last = result.images["base"][0], result.images["sr16"][0]
        np.testing.assert_array_equal(last[~mask], picture[~mask])
        small, keep = resize_uint8(picture, 8, 8), kept_at_8(mask)
        np.testing.assert_array_equal(base[keep], small[keep])
        drawn.append((last[mask] != picture[mask]).mean())
        counts.append(keep.sum())
    assert np.mean(drawn) > 0.9  # and the rest is drawn
    assert min(counts) == 0 < max(counts)


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (12, 20), (5, 7), (32, 16), (37, 9)])
def test_a_kept_pixel_is_computed_from_kept_pixels(size):
    """Whatever is under the mask, the resized picture is the same where it is kept."""
    mask = np.random.default_rng(2).random(size) < 0.1
    keep = ~resize_mask(mask, 16, 16)
    for value in (0, 255):
        picture = RNG.integers(0, 256, (*size, 3), np.uint8)
        other = np.where(mask[..., None], np.uint8(value), picture)
        a, b = resize_uint8(picture, 16, 16), resize_uint8(other, 16, 16)
        np.testing.assert_array_equal(a[keep], b[keep])
    assert keep.any() and not keep.all()


@pytest.mark.slow
def test_full_strength_draws_from_noise(cascade):
    options = {"num_images": 2, "seed": 3, "batch_size": 2}
    plain = cascade("a red circle", **options)
    edited = cascade.edit(PICTURE, "a red circle", strength=1.0, **options)
    for name, pictures in plain.images.items():
        np.testing.assert_array_equal(edited.images[name], pictures)
    # Of three steps 0.9 are three, rounded up, and 0.6 are two.
    more = cascade.edit(PICTURE, "a red circle", strength=0.9, **options)
    np.testing.assert_array_equal(more.images["base"], plain.images["base"])
    less = cascade.edit(PICTURE, "a red circle", strength=0.6, **options)
    assert (less.images["base"] != plain.images["base"]).any()


@pytest.mark.slow
def test_strength_by_stage(cascade):
    options = {"num_images": 1, "batch_size": 1}
    one = cascade.edit(PICTURE, "a", strength=0.4, **options)
    two = cascade.edit(PICTURE, "a", strength={"base": 0.4, "sr16": 0.4}, **options)
    np.testing.assert_array_equal(one.images["base"], two.images["base"])
    assert (one.images["sr16"] != two.images["sr16"]).any()
    # A chain that begins with a super-resolution stage enlarges the reduced picture.
    last = cascade.edit(PICTURE, "a", strength=1.0, stages="sr16", **options)
    same = cascade("a", low_res_image=resize_uint8(PICTURE, 8, 8), **options)
    np.testing.assert_array_equal(last.images["sr16"], same.images["sr16"])


def test_strength_is_a_share_of_the_steps():
    edit = lib.Edit(picture=PICTURE, strength=0.28)
    assert edit.at(["base"], "base", (8, 8), 25).skip == 18  # 0.28 * 25 is 7.000000000000001
    assert edit.at(["base"], "base", (8, 8), 10).skip == 7  # 2.8 steps are 3
    assert lib.Edit(picture=PICTURE, strength=1e-6).at(["base"], "base", (8, 8), 10).skip == 9
    assert edit.at(["base", "sr16"], "sr16", (16, 16), 10) is None


def test_outpainting(cascade):
    small = PICTURE[:8, :12]
    picture, mask = lib.outpaint(small, lib.parse_margins("0,4,0.3333,4", "x"))
    assert picture.shape == (16, 16, 3) and mask.sum() == 256 - 96
    np.testing.assert_array_equal(picture[4:12, :12], small)
    assert not mask[4:12, :12].any()
    # The program of the test of masks.
    options = {"num_steps": 2, "resample": 2, "num_images": 1}
    result = cascade.inpaint(small, margins=(0, 4, 4, 4), **options)
    np.testing.assert_array_equal(result.images["sr16"][0][4:12, :12], small)
    with pytest.raises(UserError, match=r"padded picture is 20x16, but 16x16 is drawn.*5:4"):
        cascade.inpaint(PICTURE, margins=(0, 0, 4, 0))


@pytest.mark.slow
def test_outpainting_to_another_shape(cascade):
    wide = cascade.inpaint(PICTURE, margins=(0, 0, 8, 0), size=(24, 16), num_images=1)
    assert wide.images["base"].shape == (1, 8, 12, 3)
    np.testing.assert_array_equal(wide.images["sr16"][0][:, :16], PICTURE)


@pytest.mark.slow
def test_upscaling_a_picture_of_any_size(cascade, caplog):
    options = {"num_images": 1, "batch_size": 1}
    exact = cascade.upscale(PICTURE[:8, :8], "a", **options)
    plain = cascade("a", low_res_image=PICTURE[:8, :8], **options)
    np.testing.assert_array_equal(exact.images["sr16"], plain.images["sr16"])
    with caplog.at_level(logging.WARNING, "imagen_jax"):
        large = cascade.upscale(PICTURE[:15, :12], "a", **options)
    assert "12x15" in caplog.text and "12x14" in caplog.text and "not trained" not in caplog.text
    assert large.images["sr16"].shape == (1, 28, 24, 3)
    assert large.editing == {"size": "24x28", "tiles": {"sr16": [16, 4]}}
    with pytest.raises(UserError, match="1x16 pixels; each side must be at least 2"):
        cascade.upscale(PICTURE[:, :1])


def test_sizes(cascade, caplog):
    chain = ["base", "sr16"]
    with caplog.at_level(logging.WARNING, "imagen_jax"):
        assert cascade.shapes(chain, "1:1", (24, 16)) == {"base": (8, 12), "sr16": (16, 24)}
        assert "'sr16' was not trained on pictures of 24x16" in caplog.text
        caplog.clear()
        # In tiles of a trained size nothing is untrained.
        tiles = {
            name: stage_tiles(cascade.stages[name], s)
            for name, s in zip(chain, (8, 16), strict=True)
        }
        cascade.shapes(chain, "1:1", (24, 16), tiles)
        assert not caplog.records
    with pytest.raises(UserError, match=r"multiples of 8 pixels.*16 or 24 wide, 16 high"):
        cascade("a", size=(20, 16))
    with pytest.raises(UserError, match="nearest are 8 wide"):
        cascade("a", size="3x16")
    for bad in ("wide", "3x", (3,), (1.5, 8), 5, "-8x8"):
        with pytest.raises(UserError, match="is no size"):
            cascade("a", size=bad)
    with pytest.raises(UserError, match=r"must be in \[1, 65536\]"):
        cascade("a", size="0x8")
    with pytest.raises(UserError, match="both given"):
        cascade("a", size=(24, 16), aspect="3:2")


def test_attention_over_too_many_pixels_is_refused():
    model = EfficientUNetConfig(
        channels=(8,),
        num_res_blocks=(1,),
        strides=(2,),
        self_attention=(True,),
        text_attention=("none",),
        head_dim=8,
    )
    stage = opened(StageConfig(resolution=16, model=model), 6)
    trained = {"stage": {(16, 16)}}
    # 160 x 160 pixels at half the size, four bytes for each pair: 2.4 GiB of 2.
    with pytest.raises(UserError, match=r"25,600 pixels .* 2\.4 GiB .*--tile=16"):
        sized_shapes([stage], (320, 320), {}, trained)
    tiles = {"stage": stage_tiles(stage, 16)}
    assert sized_shapes([stage], (320, 320), tiles, trained) == {"stage": (320, 320)}


def test_metadata_and_folders_tell_edits_apart(cascade, tmp_path):
    chain = ["base", "sr16"]

    def origin(edit=None, size=None, tile=None):
        frame = cascade.frame(chain, None, "1:1", size, edit, tile, None)
        settings = {name: cascade.settings(name) for name in chain}
        return cascade.origin(Request(prompts=("a",), seeds=(0,), settings=settings, **frame))

    plain = origin()
    assert "editing" not in plain.to_json_dict() and "editing" not in plain.metadata("base")
    edit = lib.Edit(picture=PICTURE, mask=HALF)
    origins = [
        plain,
        origin(edit),
        origin(dataclasses.replace(edit, picture=255 - PICTURE)),
        origin(dataclasses.replace(edit, mask=~HALF)),
        origin(dataclasses.replace(edit, resample=2)),
        origin(dataclasses.replace(edit, jump=2)),
        origin(dataclasses.replace(edit, strength=0.5)),
        origin(lib.Edit(picture=PICTURE, strength=0.5)),
        origin(size="24x16"),
        origin(size="24x16", tile=16),
    ]
    assert len({each.directory_name() for each in origins}) == len(origins)
    PictureFolder(tmp_path, origins[1]).write("sr16", 0, PICTURE)
    with Image.open(next((tmp_path / "sr16").glob("*.png"))) as file:
        editing = json.loads(file.text["editing"])
    digest = hashlib.sha256(b"(16, 16, 3) uint8 " + PICTURE.tobytes()).hexdigest()
    assert editing["picture_sha256"] == digest and editing["resample"] == {"base": 1, "sr16": 1}
    with pytest.raises(UserError, match=r"editing\.mask_sha256"):
        PictureFolder(tmp_path, origins[3])


def test_masks(tmp_path):
    grey = np.uint8(HALF) * 127 + 60  # 60 and 187
    for mask in (HALF, grey, Image.fromarray(grey), Image.fromarray(HALF), np.dstack([grey] * 3)):
        np.testing.assert_array_equal(lib.load_mask(mask), HALF)
    Image.fromarray(grey).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(lib.load_mask(tmp_path / "mask.png"), HALF)
    np.testing.assert_array_equal(lib.load_mask(np.uint8([[127, 128]])), [[False, True]])
    with pytest.raises(UserError, match=r"colours, such as .* at \(0, 0\)"):
        lib.load_mask(PICTURE)
    for bad in (HALF * 1.0, np.int64(HALF), HALF[:0]):
        if bad.size:
            with pytest.raises(UserError, match="bool or uint8"):
                lib.load_mask(bad)
    with pytest.raises(UserError, match=r"mask .*missing.png does not exist"):
        lib.load_mask(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strength": 0}, "strength=0 must be in .* nothing would be drawn"),
        ({"strength": 1.01}, "strength=1.01"),
        ({"strength": float("nan")}, "strength=nan"),
        ({"strength": "much"}, "strength='much' is not a number"),
        ({"strength": {"base": -1}}, "strength=-1"),
        ({"resample": 2}, "resample=2 needs a mask"),
        ({"mask": HALF, "resample": 0}, r"resample=0 must be in \[1"),
        ({"mask": HALF, "resample": 2.5}, "resample=2.5 is not a whole number"),
        ({"mask": HALF, "jump": -1}, "jump=-1"),
        ({"mask": HALF[:8]}, "mask is 16x8 and the picture 16x16|mask is 16x8 pixels and the"),
        ({"mask": np.zeros_like(HALF)}, "black everywhere: nothing is to be drawn"),
        ({"mask": np.ones_like(HALF)}, "white everywhere: nothing of the picture is kept"),
    ],
)
def test_edits_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        lib.Edit(picture=PICTURE, **fields)


@pytest.mark.parametrize(
    "text", ["1,2,3", "1,2,3,x", "1,2,3,-4", "0,0,0,0", "1,2,3,nan", "1;2;3;4"]
)
def test_margins_that_are_none(text):
    with pytest.raises(UserError, match="--outpaint"):
        lib.parse_margins(text, "--outpaint")


def test_stages_and_pictures_that_do_not_fit(cascade):
    with pytest.raises(UserError, match="strength for 'sr99'"):
        cascade.edit(PICTURE, strength={"sr99": 0.5})
    with pytest.raises(UserError, match="both given"):
        cascade.edit(PICTURE, low_res_image=PICTURE)
    with pytest.raises(UserError, match="no mask is given"):
        cascade.inpaint(PICTURE)
    with pytest.raises(UserError, match="tile_overlap=4 needs a tile"):
        cascade("a", tile_overlap=4)
    with pytest.raises(UserError, match="tile for 'sr99'"):
        cascade("a", tile={"sr99": 16})
    with pytest.raises(UserError, match="picture is a file"):
        cascade.edit(5)
