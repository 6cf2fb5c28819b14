"""Shares, colour statistics, fidelity of super-resolution, nearest pictures: known values."""

import math

import numpy as np
import pytest
from PIL import Image

from imagen_jax.config import DataConfig
from imagen_jax.evaluation import nearest, picture_statistics, super_resolution
from imagen_jax.evaluation.proportions import paired, share


def plain(*colour, side=8):
    return np.broadcast_to(np.array(colour, np.uint8), (side, side, 3))


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    # Newcombe 1998, table I, method 3 (score), to its four digits.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval(hits, total, low, high):
    found = share([True] * hits + [False] * (total - hits))
    assert (found.hits, found.total, found.share) == (hits, total, hits / total)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


def test_mcnemar_counts_only_what_changed():
    before = [True] * 5 + [False] * 9 + [True]
    after = [True] * 5 + [False] + [True] * 8 + [False]
    found = paired(before, after)
    assert (found.gained, found.lost, found.total) == (8, 1, 15)
    assert found.difference == pytest.approx(7 / 15)
    # Twice the probability of at most one head in nine throws.
    assert found.p == pytest.approx(2 * (1 + 9) / 2**9)
    assert paired([True, False], [True, False]).p == 1.0


def test_saturation_and_clipping():
    assert picture_statistics.saturation(plain(200, 0, 0)) == 1.0
    assert picture_statistics.saturation(plain(200, 150, 100)) == 0.5
    assert picture_statistics.saturation(plain(90, 90, 90)) == 0.0
    assert picture_statistics.saturation(plain(0, 0, 0)) == 0.0
    half = np.concatenate([plain(255, 10, 10), plain(254, 1, 1)])
    assert picture_statistics.clipped_share(half) == 0.5
    assert picture_statistics.clipped_share(plain(3, 0, 9)) == 1.0


def test_colourfulness():
    assert picture_statistics.colourfulness(plain(77, 77, 77)) == 0.0
    # Constant: no spread; rg = 100, yb = 0.5 * 100 - 0 = 50.
    expected = 0.3 * math.hypot(100, 50)
    assert picture_statistics.colourfulness(plain(100, 0, 0)) == pytest.approx(expected)
    # Half red, half grey of 0: each axis has half its value as mean and as spread.
    half = np.concatenate([plain(100, 0, 0), plain(0, 0, 0)])
    expected = 1.3 * math.hypot(50, 25)
    assert picture_statistics.colourfulness(half) == pytest.approx(expected)


def test_means_over_pictures():
    found = picture_statistics.mean_statistics([plain(255, 0, 0), plain(9, 9, 9)])
    assert found["saturation"] == 0.5 and found["clipped_share"] == 0.5


def test_diversity_is_the_mean_over_pairs():
    pictures = np.stack([plain(v, v, v) for v in (0, 10, 30)])
    assert picture_statistics.diversity(pictures) == pytest.approx((10 + 30 + 20) / 3)


def test_psnr():
    assert super_resolution.psnr(plain(5, 5, 5), plain(6, 6, 6)) == pytest.approx(48.1308, abs=1e-4)
    assert super_resolution.psnr(plain(5, 5, 5), plain(5, 5, 5)) == super_resolution.MAX_PSNR


def test_fidelity_sees_a_drift_and_ignores_added_detail():
    low_res = np.random.default_rng(0).integers(50, 200, (4, 4, 3)).astype(np.uint8)
    picture = low_res.repeat(2, axis=0).repeat(2, axis=1)
    detail = np.tile(np.array([[40, -40], [-40, 40]]), (4, 4))[..., None]
    found = super_resolution.fidelity((picture + detail).astype(np.uint8), low_res)
    assert found.consistency == super_resolution.MAX_PSNR and found.drift == (0.0, 0.0, 0.0)
    moved = (picture + detail + np.array([3, 0, -2])).astype(np.uint8)
    found = super_resolution.fidelity(moved, low_res)
    assert found.drift == pytest.approx((3, 0, -2))
    # Mean square of the drift: 13 / 3.
    assert found.consistency == pytest.approx(10 * math.log10(255**2 * 3 / 13))
    summary = super_resolution.summarize(
        [found, super_resolution.Fidelity(30.0, (-3.0, 0.0, -2.0))]
    )
    assert summary["drift"] == pytest.approx([0, 0, -2])
    assert summary["drift_size"] == pytest.approx(5 / 3)


def test_reducing_and_enlarging():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    boxes = picture.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    # Half a unit of rounding, and a little for means of float32 in [-1, 1].
    np.testing.assert_allclose(super_resolution.reduce(picture, 4), boxes, atol=0.501)
    enlarged = super_resolution.enlarge(picture, 16)
    expected = Image.fromarray(picture).resize((16, 16), Image.Resampling.BILINEAR)
    # Pillow rounds after each axis.
    np.testing.assert_allclose(enlarged.astype(int), np.asarray(expected, int), atol=1)


def test_the_nearest_training_picture(tmp_path):
    for number, red in enumerate((0, 100, 200)):
        Image.new("RGB", (40, 40), (red, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    (tmp_path / "1.png").write_bytes(b"no picture")
    data = DataConfig(source="folder", path=str(tmp_path))
    training = nearest.load_training_pictures(data)
    assert training.total == 3 and training.items.tolist() == [0, 2]
    found = nearest.nearest(plain(188, 0, 0, side=64), training)
    assert found.item == 2
    assert found.distance == pytest.approx(12 / math.sqrt(3), rel=1e-5)  # float32
    assert nearest.load_training_pictures(data, limit=2).items.tolist() == [0, 2]
    assert nearest.load_training_pictures(data, limit=1).items.tolist() == [0]
