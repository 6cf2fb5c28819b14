"""Pictures a second of every source, beside webdataset with a torch DataLoader, taking turns.

    python -m benchmarks.loaders --size=512 --rounds=5

Writes one set of photograph-like JPEGs in each format below --directory, then reads all of them
by turns with the same number of workers at 64, 256 and 1024 pixels: ours shuffled over the whole
set, theirs in shard order with a buffer. Both decode with Pillow, crop the largest centred square
and resize by the same rule (`images.decode_image`, or for the peer the same steps written as its
users write them). Needs the extras data, data-test and parity. See docs/data.md.
"""

from __future__ import annotations

import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import app, flags

from imagen_jax.config import DataConfig

SIZE = flags.DEFINE_integer("size", 512, "Shorter side of the stored pictures; 4:3.", 8)
COUNT = flags.DEFINE_integer("count", 512, "Pictures in the set.", 128)
SECONDS = flags.DEFINE_float("seconds", 3.0, "About how long each is timed, each time.", 0.1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "How often everything is timed.", 1)
WORKERS = flags.DEFINE_integer("workers", 2, "Worker processes.", 1)
RESOLUTIONS = flags.DEFINE_list("resolutions", ["64", "256", "1024"], "Sides that are read.")
DIRECTORY = flags.DEFINE_string("directory", None, "For the sets (default: a temporary one).")

BATCH = 16
PEER = "webdataset + DataLoader"
FORMATS = ("folder", "webdataset", "array_record", "arrow", "parquet", "tfds")


def main(argv: list[str]) -> None:
    """Measures, and prints a Markdown table."""
    del argv
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(DIRECTORY.value or temporary)
        write_sets(root, COUNT.value, SIZE.value)
        print(cost_table(root, ROUNDS.value), flush=True)
        rates: dict[tuple[str, int], list[float]] = {}
        for resolution in map(int, RESOLUTIONS.value):
            streams = {
                name: start(root, resolution, WORKERS.value) for name, start in subjects().items()
            }
            for name, stream in streams.items():
                rate(stream, 0.0)  # workers and first batches
                rates[name, resolution] = []
            for _ in range(ROUNDS.value):
                for name, stream in streams.items():
                    # What was read ahead while the others had their turn is not counted.
                    for _ in range(4 * WORKERS.value + 4):
                        next(stream)
                    rates[name, resolution].append(rate(stream, SECONDS.value))
            for stream in streams.values():
                if hasattr(stream, "close"):
                    stream.close()
            print(table(rates, resolution), flush=True)


def cost_table(root: Path, rounds: int) -> str:
    """CPU milliseconds of one core for one picture: reading it at random, and decoding it.

    CPU time depends less than wall time on what else the machine does; the least of all rounds.
    """
    from imagen_jax.data.images import decode_image
    from imagen_jax.data.records import load_records

    stored = {name: load_records(_config(root, name), "train") for name in FORMATS}
    data = stored["folder"].record(0).image
    costs: dict[str, float] = {}

    def add(what: str, function: Callable[[int], object], indices: list[int]) -> None:
        start = time.process_time()
        for index in indices:
            function(index)
        seconds = (time.process_time() - start) / len(indices)
        costs[what] = min(costs.get(what, seconds), seconds)

    for number in range(rounds):
        for name, records in stored.items():
            order = np.random.default_rng(number).permutation(len(records))[:100].tolist()
            add(f"read, {name}", records.record, order)
        for side in map(int, RESOLUTIONS.value):
            add(f"decode to {side}", lambda _, side=side: decode_image(data, side), [0] * 10)
    rows = (f"| {what} | {1e3 * seconds:.2f} |" for what, seconds in costs.items())
    return "\n".join(["\n| one picture | CPU ms |", "|---|---|", *rows])


def table(rates: dict[tuple[str, int], list[float]], resolution: int) -> str:
    """Medians at one resolution, and the median of the ratios to the peer of the same round."""
    lines = [f"\n| {resolution} pixels | images/s | against {PEER} |", "|---|---|---|"]
    theirs = rates[PEER, resolution]
    for (name, size), ours in rates.items():
        if size == resolution:
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            lines.append(f"| {name} | {statistics.median(ours):,.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def rate(stream: Iterator, seconds: float) -> float:
    """Pictures a second over about so long."""
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < seconds:
        next(stream)
        count += BATCH
    return count / (time.perf_counter() - start)


def subjects() -> dict[str, Callable[[Path, int, int], Iterator]]:
    """What is timed, by name."""
    return {PEER: peer} | {name: _ours(name) for name in FORMATS}


def _config(root: Path, name: str) -> DataConfig:
    path = root / name
    if name == "tfds":
        path = next(path.glob("*/*/dataset_info.json")).parent
    return DataConfig(source=name, path=str(path))


def _ours(name: str) -> Callable[[Path, int, int], Iterator]:
    def start(root: Path, resolution: int, workers: int) -> Iterator:
        from imagen_jax.data.pipeline import batches
        from imagen_jax.data.sources import load_source

        return batches(
            load_source(_config(root, name), "train", resolution),
            batch_size=BATCH,
            image_size=resolution,
            seed=0,
            num_threads=1,
            num_workers=workers,
        )

    return start


def peer(root: Path, resolution: int, workers: int) -> Iterator:
    """The usual pipeline of webdataset's documentation: no torchvision, which has no CPU build."""
    import torch
    import webdataset as wds

    # Braces and lists of urls: every worker takes some of the shards.
    urls = sorted(map(str, (root / "webdataset").glob("*.tar")))
    data = (
        wds.WebDataset(urls, shardshuffle=len(urls), resampled=True, seed=0)
        .shuffle(100)
        .to_tuple("jpg", "txt")
        .map(_Decode(resolution))
        .batched(BATCH)
    )
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers)
    return iter(loader)


class _Decode:
    """JPEG to a square of the given side, as users of torch write it."""

    def __init__(self, resolution: int):
        self._resolution = resolution

    def __call__(self, sample: tuple[bytes, bytes]):
        import torch
        from PIL import Image

        data, text = sample
        size = self._resolution
        image = Image.open(io.BytesIO(data))
        image.draft(None, (2 * size, 2 * size))
        image = image.convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        method = Image.Resampling.BOX if side % size == 0 else Image.Resampling.BILINEAR
        # A tensor crosses to the main process in shared memory, an array would be copied.
        return torch.from_numpy(np.array(image.resize((size, size), method))), text.decode()


def write_sets(root: Path, count: int, size: int) -> None:
    """The same pictures in every layout."""
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
    # What Hugging Face's tools choose for pictures.
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
    """A JPEG with the spectrum of a photograph (amplitude as 1/frequency), 4:3, quality 90."""
    from PIL import Image

    rng = np.random.default_rng(number)
    height, width = size, size * 4 // 3
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    noise = np.fft.rfft2(rng.standard_normal((height, width, 3)), axes=(0, 1))
    values = np.fft.irfft2(noise / frequency[..., None], (height, width), axes=(0, 1))
    values = 128 + 50 * values / values.std()
    stream = io.BytesIO()
    picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


if __name__ == "__main__":
    app.run(main)
