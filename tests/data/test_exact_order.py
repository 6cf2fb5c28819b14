"""Three epochs on 1, 2 and 4 processes, resumed at random points, read the same items."""

import random

import layouts
import numpy as np
import pytest

from imagen_jax.config import DataConfig, MixConfig
from imagen_jax.data.open import load_source
from imagen_jax.data.pipeline import batches

COUNT, BATCH, SIZE = 96, 8, 16
BAD = {3, 50, 51}


def write(folder):
    """Two shards; items with two captions, three of them damaged, one too small."""
    for shard in range(2):
        files = []
        for i in range(shard * 48, shard * 48 + 48):
            data = layouts.png(i, width=4 if i == 7 else 20)
            files.append((f"{i}.png", data[:45] if i in BAD else data))
            files.append((f"{i}.json", b'{"captions": ["%d a", "%d b"]}' % (i, i)))
        layouts.write_tar(folder / f"{shard}.tar", files)


def tars(folder) -> DataConfig:
    write(folder)
    return DataConfig(source="webdataset", path=str(folder), min_side=0.5)


def mix(folder) -> DataConfig:
    write(folder / "a")
    layouts.write_img2dataset_tars(folder / "b", 32)
    parts = {
        name: MixConfig(source="webdataset", path=str(folder / name), weight=weight)
        for name, weight in (("a", 3.0), ("b", 1.0))
    }
    return DataConfig(source="mix", mix=parts, min_side=0.5)


def read_in_parts(data: DataConfig, steps: int, process_counts: list[int], draw: random.Random):
    """All rows in global order, from parts of random length on random numbers of processes."""
    rows, seen, numbers = [], 0, []
    while seen < steps * BATCH:
        part = min(draw.randint(1, 7), steps - seen // BATCH)
        count = draw.choice(process_counts)
        streams = [
            batches(
                load_source(data, "train", SIZE),
                batch_size=BATCH,
                image_size=SIZE,
                seed=5,
                start_index=seen,
                rows=part_rows,
                num_threads=draw.choice((0, 2)),
                flip=True,
            )
            for part_rows in np.split(np.arange(BATCH), count)
        ]
        for _ in range(part):
            for stream in streams:
                batch = next(stream)
                rows += zip(batch["captions"], batch["image"], strict=True)
                numbers.append(batch["left_out"])
        for stream in streams:
            stream.close()
        seen += part * BATCH
    return rows, numbers


def total(numbers, group):
    counts = {}
    for number in numbers:
        for kind, n in number[group].items():
            counts[kind] = counts.get(kind, 0) + n
    return counts


@pytest.mark.parametrize("make", [tars, mix])
@pytest.mark.parametrize("process_counts", [[1], [2], [4], [1, 2, 4]])
def test_three_epochs_visit_the_same_items(tmp_path, make, process_counts):
    data = make(tmp_path)
    steps = 3 * COUNT // BATCH
    whole = batches(
        load_source(data, "train", SIZE), batch_size=BATCH, image_size=SIZE, seed=5, flip=True
    )
    expected, numbers = [], []
    for _ in range(steps):
        batch = next(whole)
        expected += zip(batch["captions"], batch["image"], strict=True)
        numbers.append(batch["left_out"])
    whole.close()
    rows, resumed_numbers = read_in_parts(
        data, steps, process_counts, random.Random(sum(process_counts))
    )
    assert [caption for caption, _ in rows] == [caption for caption, _ in expected]
    for (_, image), (_, expected_image) in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(image, expected_image)
    for group in ("bad", "filtered"):
        assert total(numbers, group) == total(resumed_numbers, group)
    assert total(numbers, "filtered")["picture too small"] >= 1
    if make is tars:
        visits = [int(caption.split()[0]) for caption, _ in rows]
        for i in range(COUNT):
            assert visits.count(i) == 0 if i in {7, *BAD} else visits.count(i) >= 3
