"""Writes the same photograph-like JPEGs in every data format, for benchmarks.loaders."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy as np

from imagen_jax.config import DataConfig


def write_sets(root: Path, count: int, size: int) -> None:
    """Writes `count` pictures of height `size` in every format below `root`, unless done before."""
    import datasets
    import tensorflow_datasets as tfds

    from imagen_jax.data.prepare import prepare

    if (root / "done").exists():
        return
    pictures = [photograph(i, size) for i in range(count)]
    captions = [f"a made-up picture, number {i}" for i in range(count)]
    (root / "folder").mkdir(parents=True, exist_ok=True)
    for i, (data, text) in enumerate(zip(pictures, captions, strict=True)):
        (root / "folder" / f"{i:06}.jpg").write_bytes(data)
        (root / "folder" / f"{i:06}.txt").write_text(text)
    _write_tars(root / "webdataset", pictures, captions)
    prepare(
        DataConfig(source="folder", path=str(root / "folder")),
        str(root / "array_record"),
        shard_size=128,
    )
    rows = {
        "image": [{"bytes": data, "path": None} for data in pictures],
        "text": captions,
    }
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(root / "arrow")
    (root / "parquet").mkdir(exist_ok=True)
    # The row group size of Hugging Face's tools for pictures.
    table.to_parquet(root / "parquet" / "train-00000.parquet", batch_size=100)

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            spec = {"image": tfds.features.Image(), "caption": tfds.features.Text()}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(spec))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, (data, text) in enumerate(zip(pictures, captions, strict=True)):
                yield i, {"image": io.BytesIO(data), "caption": text}

    Pictures(data_dir=str(root / "tfds"), file_format="array_record").download_and_prepare()
    (root / "done").write_text(json.dumps({"count": count, "size": size}))


def _write_tars(folder: Path, pictures: list[bytes], captions: list[str], shards: int = 4) -> None:
    import tarfile

    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for i in range(shard, len(pictures), shards):
                files = (("jpg", pictures[i]), ("txt", captions[i].encode()))
                for extension, data in files:
                    entry = tarfile.TarInfo(f"{i:06}.{extension}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


def photograph(number: int, size: int) -> bytes:
    """A 4:3 JPEG of quality 90 with the spectrum of a photograph (amplitude ~ 1/frequency)."""
    from PIL import Image

    # One of four seamless textures, shifted by a random offset.
    rng = np.random.default_rng(number)
    texture = _texture(number % 4, size)
    moved = np.roll(texture, rng.integers(0, texture.shape[:2]), (0, 1))
    stream = io.BytesIO()
    Image.fromarray(moved).save(stream, "JPEG", quality=90)
    return stream.getvalue()


@functools.cache
def _texture(seed: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    height, width = size, size * 4 // 3
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    noise = np.fft.rfft2(rng.standard_normal((height, width, 3)), axes=(0, 1))
    values = np.fft.irfft2(noise / frequency[..., None], (height, width), axes=(0, 1))
    values = 128 + 50 * values / values.std()
    return np.clip(values, 0, 255).astype(np.uint8)
