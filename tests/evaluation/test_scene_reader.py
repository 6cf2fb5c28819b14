import math
import os
import time

import numpy as np
import pytest
from pictures import DISTORTIONS, WRONG_PICTURES, WRONG_SCENES, true_pictures, wrong_pictures

from imagen_jax.data.builtin.shapes import Object, Scene, render
from imagen_jax.data.builtin.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES
from imagen_jax.errors import UserError
from imagen_jax.evaluation.caption_check import check
from imagen_jax.evaluation.scene_reader import UNKNOWN, SeenScene, read_scene

WRONG = [*WRONG_SCENES, *WRONG_PICTURES]


def share_accepted(pictures) -> float:
    return float(
        np.mean([all(check(read_scene(image), said).values()) for image, said, _ in pictures])
    )


# What is accepted is all or nothing in tens of thousands (see the slow tests), so that a single
# failure in so few pictures is a defect.
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_true_pictures_are_accepted(size, distortion):
    assert share_accepted(true_pictures(40, size, distortion, seed=1)) == 1.0


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_pictures_are_not_accepted(size, kind):
    assert share_accepted(wrong_pictures(15, size, kind, "all", seed=1)) == 0.0


@pytest.mark.parametrize("size", [40, 48, 96, 100, 128, 256])
def test_pictures_of_other_sizes_are_read(size):
    assert share_accepted(true_pictures(20, size, "noise", seed=2)) == 1.0


# Of each case. 10,000, which the thresholds are meant for, take three quarters of an hour:
#     PICTURES=10000 pytest -m slow -s tests/evaluation/test_scene_reader.py --dist load
PICTURES = int(os.environ.get("PICTURES", "500"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_many_true_pictures(size, distortion):
    share = share_accepted(true_pictures(PICTURES, size, distortion))
    print(f"\n{size}x{size}, {PICTURES:,} true, {distortion}: {share:.2%} accepted")
    assert share >= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("kind", WRONG)
def test_many_wrong_pictures(size, kind):
    share = share_accepted(wrong_pictures(PICTURES, size, kind))
    print(f"\n{size}x{size}, {PICTURES:,} wrong, {kind}: {share:.2%} accepted")
    assert share <= 0.005


def test_all_that_is_drawn_is_read_back():
    for image, _, drawn in true_pictures(60, 64, "as drawn", seed=3):
        seen = read_scene(image)
        assert seen.background == drawn.background
        assert len(seen.objects) == len(drawn.objects)
        for item in drawn.objects:
            nearest = min(seen.objects, key=lambda o, i=item: math.hypot(o.x - i.x, o.y - i.y))
            # A tenth of a pixel; bytes round the coverage.
            assert math.hypot(nearest.x - item.x, nearest.y - item.y) < 0.1 / 64
            looks = nearest.shape, nearest.colour, nearest.size
            assert looks == (item.shape, item.colour, item.size)
            x0, y0, x1, y1 = nearest.box
            # Pixels that are covered by half, so that a sharp tip may lie outside.
            assert item.x - item.radius - 1 / 64 <= x0 < x1 <= item.x + item.radius + 1 / 64
            assert item.y - item.radius - 1 / 64 <= y0 < y1 <= item.y + item.radius + 1 / 64
            assert max(x1 - x0, y1 - y0) > 1.3 * item.radius


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degrees", [-100, 45, 180])
def test_a_shape_is_itself_at_any_angle(shape, degrees):
    item = Object(shape, "red", "medium", 0.45, 0.55, 0.2, math.radians(degrees))
    (seen,) = read_scene(render(Scene("single", "white", (item,)), 64)).objects
    assert (seen.shape, seen.size) == (shape, "medium")


def paint(inside, ink=COLOURS["red"], ground=BACKGROUNDS["white"], size: int = 64) -> np.ndarray:
    """A picture of any region, given by a function of pixels from the centre (x, y)."""
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    return np.where(inside(x, y)[..., None], np.uint8(ink), np.uint8(ground))


@pytest.mark.parametrize(
    "inside",
    [
        lambda x, y: (x / 20) ** 2 + (y / 10) ** 2 < 1,  # oval
        lambda x, y: (np.abs(x) < 20) & (np.abs(y) < 9),  # oblong
        lambda x, y: (np.abs(x) < 16) & (np.abs(y) < 16) & ((x < -4) | (y > 4)),  # L
        lambda x, y: (np.hypot(x, y) < 16) & ~((np.abs(x) < 3) & (y < 0)),  # slit disc
        lambda x, y: (np.hypot(x, y) < 16) & (np.hypot(x - 4, y) > 5),  # disc with a hole
        lambda x, y: (np.hypot(x + 10, y) < 10) | (np.hypot(x - 9, y) < 10),  # two discs in one
    ],
)
def test_a_blob_is_no_shape(inside):
    (seen,) = read_scene(paint(inside)).objects
    assert (seen.shape, seen.colour) == (UNKNOWN, "red")


def test_a_slightly_wrong_circle_is_a_circle():
    def bumpy(x, y):
        return np.hypot(x, y) < 16 + 0.8 * np.sin(5 * np.arctan2(y, x))

    (seen,) = read_scene(paint(bumpy)).objects
    assert seen.shape == "circle"


def test_colours_without_a_name_are_unknown():
    def disc(x, y):
        return np.hypot(x, y) < 14

    seen = read_scene(paint(disc, ink=(255, 255, 255), ground=(0, 140, 140)))
    assert seen.background == UNKNOWN
    assert [(o.colour, o.shape) for o in seen.objects] == [(UNKNOWN, "circle")]


def test_a_disc_of_two_halves_is_two_objects():
    image = paint(lambda x, y: np.hypot(x, y) < 16)
    image[:32][(image[:32] == COLOURS["red"]).all(-1)] = COLOURS["blue"]
    seen = read_scene(image)
    assert sorted((o.colour, o.shape == "circle") for o in seen.objects) == [
        ("blue", False),
        ("red", False),
    ]


def test_a_ring_around_a_disc_is_two_objects():
    image = paint(lambda x, y: np.abs(np.hypot(x, y) - 0.76 * 20) < 0.24 * 20)
    y, x = np.mgrid[:64, :64] + 0.5 - 32
    image[np.hypot(x, y) < 7] = COLOURS["lime"]
    seen = read_scene(image)
    assert [(o.colour, o.shape) for o in seen.objects] == [("red", "ring"), ("lime", "circle")]


def test_specks_are_no_objects():
    image = paint(lambda x, y: np.hypot(x, y) < 14)
    image[2:5, 2:5] = image[60, 20] = (0, 0, 0)
    assert len(read_scene(image).objects) == 1


def test_an_object_may_touch_the_border():
    seen = read_scene(paint(lambda x, y: np.hypot(x - 18, y) < 16))
    assert seen.background == "white" and [o.shape for o in seen.objects] == ["circle"]
    wall = read_scene(paint(lambda x, y: x > 16))  # two fifths of the border
    assert wall.background == "white" and [o.shape for o in wall.objects] == [UNKNOWN]


def test_blank_pictures_are_empty():
    image = np.full((32, 32, 3), BACKGROUNDS["navy"], np.uint8)
    assert read_scene(image) == SeenScene("navy", ())


def test_reading_is_deterministic_and_changes_nothing():
    image, _, _ = next(true_pictures(1, 64, "all", seed=4))
    before = image.copy()
    assert read_scene(image) == read_scene(image)
    np.testing.assert_array_equal(image, before)


def test_a_thousand_pictures_take_less_than_a_minute():
    pictures = [image for image, _, _ in true_pictures(40, 64, "all", seed=5)]
    start = time.process_time()
    for image in pictures:
        read_scene(image)
    # About 10 ms each on an idle core; 60 leave room for a busy one.
    assert time.process_time() - start < 0.06 * len(pictures)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((64, 64, 3), np.float32), "float32"),
        (np.zeros((64, 64), np.uint8), r"\[64, 64\]"),
        (np.zeros((1, 64, 64, 3), np.uint8), r"\[1, 64, 64, 3\]"),
        (np.zeros((64, 32, 3), np.uint8), "64x32"),
        (np.zeros((16, 16, 3), np.uint8), "16x16"),
    ],
)
def test_errors(image, message):
    with pytest.raises(UserError, match=message):
        read_scene(image)
