"""Fidelity of super-resolution: to the low-resolution picture and, where known, to the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import resize
from imagen_jax.types import normalize_image, to_uint8

# PSNR of equal pictures, instead of infinity. Rounding to 8 bits alone gives 59 dB.
MAX_PSNR = 100.0


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How close a picture is to the low-resolution one that it was made from.

    Attributes:
      consistency: PSNR in dB of the picture, box-averaged down, against the low-resolution one.
      drift: mean of the picture minus mean of the low-resolution one, by channel, in 1/255.
    """

    consistency: float
    drift: tuple[float, float, float]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in [0, 255], at most `MAX_PSNR`."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(min(MAX_PSNR, 10.0 * np.log10(255.0**2 / max(error, 1e-12))))


def fidelity(picture: np.ndarray, low_res: np.ndarray) -> Fidelity:
    """Compares `[H, W, 3]` uint8 with the `[h, w, 3]` uint8 that it was made from."""
    side = low_res.shape[0]
    factor = picture.shape[0] // side
    boxes = picture.reshape(side, factor, side, factor, 3).astype(np.float64).mean(axis=(1, 3))
    drift = (boxes - low_res).mean(axis=(0, 1))
    return Fidelity(psnr(boxes, low_res), tuple(map(float, drift)))


def reduce(picture: np.ndarray, side: int) -> np.ndarray:
    """Reduces a true picture `[H, W, 3]` uint8 as in training, to `[side, side, 3]` uint8."""
    x = normalize_image(jnp.asarray(picture[None]))
    return np.asarray(to_uint8(resize.downsample(x, picture.shape[0] // side)))[0]


def enlarge(low_res: np.ndarray, side: int) -> np.ndarray:
    """Bilinear enlargement to `[side, side, 3]` uint8, the baseline of super-resolution."""
    x = normalize_image(jnp.asarray(low_res[None]))
    return np.asarray(to_uint8(resize.upsample(x, side // low_res.shape[0])))[0]


def summarize(measured: Sequence[Fidelity]) -> dict[str, object]:
    """Means over pictures; `drift_size` is the mean absolute drift over pictures and channels."""
    drift = np.array([one.drift for one in measured])
    return {
        "pictures": len(measured),
        "consistency_psnr": float(np.mean([one.consistency for one in measured])),
        "drift": [float(value) for value in drift.mean(axis=0)],
        "drift_size": float(np.abs(drift).mean()),
    }
