"""Pictures a second of every data format, beside webdataset with a torch DataLoader, in turns.

    python -m benchmarks.loaders

Writes photograph-like JPEGs in each format: 682x512 pixels, and 1365x1024 for reading at 1024. All
loaders then read at 64, 256 and 1024 pixels with the same number of workers: ours shuffled over the
whole set, the peer in shard order with a buffer. Both decode with Pillow, crop the largest centred
square and resize by the same rule (`images.decode_image`; for the peer the same steps as its users
write them). Loaders are stopped between their turns, see `loader_turns`. --minutes limits the
rounds. Needs the extras data, data-test and parity. See docs/benchmarks.md.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks.loader_sets import write_sets
from benchmarks.loader_turns import Contestant, Turn, serve, summary, table
from imagen_jax.config import DataConfig

COUNT = flags.DEFINE_integer("count", 1024, "Pictures of 682x512 in a set.", 128)
MINUTES = flags.DEFINE_float("minutes", 8.0, "Time limit of the whole command.", 0.0)
SECONDS = flags.DEFINE_float("seconds", 1.2, "Approximate timed part of a turn.", 0.1)
SETTLE = flags.DEFINE_float("settle", 0.3, "Approximate untimed start of a turn, seconds.", 0.0)
ROUNDS = flags.DEFINE_integer("rounds", 9, "Maximum number of turns for each loader.", 1)
WORKERS = flags.DEFINE_integer("workers", 2, "Worker processes of each loader.", 1)
RESOLUTIONS = flags.DEFINE_list("resolutions", ["64", "256", "1024"], "Resolutions to read at.")
DIRECTORY = flags.DEFINE_string("directory", None, "Where to write the sets (default: temporary).")
OUT = flags.DEFINE_string("out", "outputs/loaders.json", "File for all turns and their summary.")
SERVE = flags.DEFINE_string("serve", None, "Internal: run as this loader.")

PEER = "webdataset + DataLoader"
FORMATS = ("folder", "webdataset", "array_record", "arrow", "parquet", "tfds")


def main(argv: list[str]) -> None:
    """Measures, prints Markdown tables and writes JSON."""
    del argv
    if SERVE.value:
        start = subjects()[SERVE.value]
        root = Path(DIRECTORY.value)
        serve(
            lambda side, batch: start(_set(root, side), side, batch, WORKERS.value), WORKERS.value
        )
        return
    end = time.monotonic() + 60 * MINUTES.value
    sides = [int(side) for side in RESOLUTIONS.value]
    found = {
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "settings": {f.name: f.value for f in (COUNT, SECONDS, SETTLE, ROUNDS, WORKERS)},
        "resolutions": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(DIRECTORY.value or temporary)
        for side in sides:
            stored = _stored_side(side)
            write_sets(_set(root, side), max(128, COUNT.value * 512**3 // stored**3), stored)
        print(cost_table(root, sides), flush=True)
        common = (f"--directory={root}", f"--workers={WORKERS.value}")
        contestants = {
            name: Contestant(["-m", "benchmarks.loaders", f"--serve={name}", *common])
            for name in subjects()
        }
        try:
            for number, side in enumerate(sides):
                share = (end - time.monotonic()) / (len(sides) - number)
                turns = take_turns(contestants, side, time.monotonic() + share)
                rows = summary(turns, PEER)
                title = f"{side} pixels, {len(turns[PEER])} rounds"
                print(table(rows, title, PEER), flush=True)
                found["resolutions"][side] = {
                    "summary": rows,
                    "turns": {n: [vars(turn) for turn in own] for n, own in turns.items()},
                }
                Path(OUT.value).parent.mkdir(parents=True, exist_ok=True)
                Path(OUT.value).write_text(json.dumps(found, indent=1))
        finally:
            for contestant in contestants.values():
                contestant.close()


def take_turns(contestants: dict[str, Contestant], side: int, end: float) -> dict[str, list[Turn]]:
    """Turns of all loaders: at least one round, then as many as end before `end`."""
    # Small batches of large pictures, so that a turn has many batches.
    batch = max(4, min(64, 4096 // side))
    for contestant in contestants.values():
        contestant.begin(side, batch)
    for contestant in contestants.values():
        contestant.wait()
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    names, longest = list(contestants), 0.0
    for number in range(ROUNDS.value):
        begun = time.monotonic()
        if number and begun + longest > end:
            break
        # Every round starts with another loader, and every second one runs backwards, so that no
        # loader always follows the same one.
        at = number % len(names)
        order = names[at:] + names[:at]
        for name in order if number % 2 == 0 else reversed(order):
            turns[name].append(contestants[name].turn(SETTLE.value, SECONDS.value))
        longest = max(longest, time.monotonic() - begun)
    return turns


def _stored_side(side: int) -> int:
    """The shorter side of the stored pictures, so that none is enlarged."""
    return max(512, side)


def _set(root: Path, side: int) -> Path:
    return root / str(_stored_side(side))


def cost_table(root: Path, sides: list[int], rounds: int = 3) -> str:
    """CPU milliseconds a picture, for reading it at random and for decoding it.

    The minimum over the rounds; CPU time depends less on other load than wall time does.
    """
    from imagen_jax.data.images import decode_image
    from imagen_jax.data.open import load_records

    costs: dict[str, float] = {}

    def add(what: str, function: Callable[[int], object], indices: list[int]) -> None:
        start = time.process_time()
        for index in indices:
            function(index)
        seconds = (time.process_time() - start) / len(indices)
        costs[what] = min(costs.get(what, seconds), seconds)

    stored = {n: load_records(_config(_set(root, sides[0]), n), "train") for n in FORMATS}
    pictures = {side: _config(_set(root, side), "folder") for side in sides}
    data = {side: load_records(c, "train").record(0).image for side, c in pictures.items()}
    for number in range(rounds):
        for name, records in stored.items():
            order = np.random.default_rng(number).permutation(len(records))[:100].tolist()
            add(f"read, {name}", records.record, order)
        for side in sides:
            add(f"decode to {side}", lambda _, side=side: decode_image(data[side], side), [0] * 10)
    rows = (f"| {what} | {1e3 * seconds:.2f} |" for what, seconds in costs.items())
    return "\n".join(["\n| one picture | CPU ms |", "|---|---|", *rows])


def subjects() -> dict[str, Callable[[Path, int, int, int], Iterator]]:
    """Functions that start each loader: `(folder, side, batch, workers) -> batches`."""
    return {PEER: peer} | {name: _ours(name) for name in FORMATS}


def _config(root: Path, name: str) -> DataConfig:
    path = root / name
    if name == "tfds":
        path = next(path.glob("*/*/dataset_info.json")).parent
    return DataConfig(source=name, path=str(path))


def _ours(name: str) -> Callable[[Path, int, int, int], Iterator]:
    def start(root: Path, resolution: int, batch: int, workers: int) -> Iterator:
        from imagen_jax.data.open import load_source
        from imagen_jax.data.pipeline import batches

        return batches(
            load_source(_config(root, name), "train", resolution),
            batch_size=batch,
            image_size=resolution,
            seed=0,
            num_threads=1,
            num_workers=workers,
        )

    return start


def peer(root: Path, resolution: int, batch: int, workers: int) -> Iterator:
    """The pipeline of webdataset's documentation, without torchvision (it has no CPU build)."""
    import torch
    import webdataset as wds

    # Each worker takes some of the shards.
    urls = sorted(map(str, (root / "webdataset").glob("*.tar")))
    data = (
        wds.WebDataset(urls, shardshuffle=len(urls), resampled=True, seed=0)
        .shuffle(100)
        .to_tuple("jpg", "txt")
        .map(_Decode(resolution))
        .batched(batch)
    )
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers)
    yield from loader


class _Decode:
    """Decodes a JPEG to a square of the given side, as users of torch write it."""

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
        # A tensor goes to the main process in shared memory; an array would be copied.
        return torch.from_numpy(np.array(image.resize((size, size), method))), text.decode()


if __name__ == "__main__":
    app.run(main)
