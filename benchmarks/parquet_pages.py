"""Loads shuffled pictures from Parquet files, by single pictures and by row groups, in turns.

    python -m benchmarks.parquet_pages

Writes JPEGs of 256x256 pixels (22 kB on average) to Parquet files with Snappy, as img2dataset and
`datasets` do, in row groups of 100 and of 1000. Then loads shuffled batches of 256x256 with two
threads: through `formats.parquet`, which reads single pictures, and through pyarrow, which reads at
least a row group. The reader with pyarrow keeps its files open and the last two row groups in
memory. Both have a turn in each round. Needs the extra data. See docs/data.md.
"""

from __future__ import annotations

import collections
import io
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.loader_sets import photograph
from benchmarks.loader_turns import Turn, summary, table
from imagen_jax.config import DataConfig
from imagen_jax.data.open import load_records
from imagen_jax.data.pipeline import batches
from imagen_jax.data.records import DecodedRecords, Record, Records

COUNT = flags.DEFINE_integer("count", 4000, "Pictures in a set.", 1)
FILES = flags.DEFINE_integer("files", 4, "Files of a set.", 1)
ROWS = flags.DEFINE_list("rows", ["100", "1000"], "Rows of a row group.")
SIZE = flags.DEFINE_integer("size", 256, "Side of the pictures, stored and loaded.", 8)
THREADS = flags.DEFINE_integer("threads", 2, "Reading threads.", 1)
SECONDS = flags.DEFINE_float("seconds", 4.0, "Minimum length of a turn.", 0.1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each reader.", 1)

PAGES, GROUPS = "single pictures", "row groups"
_BATCH = 32
_NUM_KEPT = 2


class RowGroupRecords:
    """The records of Parquet files with rows (jpg, caption), read by pyarrow as row groups."""

    def __init__(self, folder: Path):
        import pyarrow.parquet as pq

        self._paths = sorted(folder.glob("*.parquet"))
        self._local = threading.local()
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[tuple[Path, int], Any] = collections.OrderedDict()
        # For each record: its file, row group and row.
        self._rows: list[tuple[Path, int, int]] = []
        for path in self._paths:
            metadata = pq.ParquetFile(path).metadata
            for group in range(metadata.num_row_groups):
                rows = range(metadata.row_group(group).num_rows)
                self._rows += [(path, group, row) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: int) -> Record:
        path, group, row = self._rows[index]
        columns = self._read_group(path, group)
        image, caption = columns["jpg"][row].as_py(), columns["caption"][row].as_py()
        return Record(str(index), image, (caption,))

    def _read_group(self, path: Path, group: int) -> Any:
        with self._lock:
            if (path, group) in self._kept:
                self._kept.move_to_end((path, group))
                return self._kept[path, group]
        columns = self._file(path).read_row_group(group, use_threads=False)
        with self._lock:
            self._kept[path, group] = columns
            while len(self._kept) > _NUM_KEPT:
                self._kept.popitem(last=False)
        return columns

    def _file(self, path: Path) -> Any:
        """An open file for each thread, since threads cannot share one."""
        import pyarrow.parquet as pq

        files = getattr(self._local, "files", None)
        if files is None:
            files = self._local.files = {}
        if path not in files:
            files[path] = pq.ParquetFile(path, memory_map=True)
        return files[path]


def write_set(folder: Path, pictures: list[bytes], rows: int) -> None:
    """Writes pictures with captions to Parquet files with `rows` rows in a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(pictures)), FILES.value)):
        columns = {
            "jpg": [pictures[i] for i in part],
            "caption": [f"picture number {i}" for i in part],
        }
        path = folder / f"{number:05}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=rows, compression="snappy")


def small_jpeg(number: int, size: int) -> bytes:
    """A square JPEG of a photograph-like picture at quality 75."""
    from PIL import Image

    picture = Image.open(io.BytesIO(photograph(number, size))).crop((0, 0, size, size))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=75)
    return stream.getvalue()


def turn(records: Records, seed: int) -> Turn:
    """Loads shuffled batches for about `SECONDS`, after a first batch that is not timed."""
    stream = batches(
        DecodedRecords(records, SIZE.value),
        batch_size=_BATCH,
        image_size=SIZE.value,
        seed=seed,
        num_threads=THREADS.value,
    )
    next(stream)
    begun, cpu, images = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begun < SECONDS.value:
        next(stream)
        images += _BATCH
    result = Turn(images, time.perf_counter() - begun, time.process_time() - cpu)
    stream.close()
    return result


def compare(folder: Path) -> dict[str, list[Turn]]:
    """All turns of both readers on one set; every second round is in the opposite order."""
    readers = {
        PAGES: load_records(DataConfig(source="parquet", path=str(folder)), None),
        GROUPS: RowGroupRecords(folder),
    }
    assert readers[PAGES].record(7).image == readers[GROUPS].record(7).image
    turns: dict[str, list[Turn]] = {name: [] for name in readers}
    for number in range(ROUNDS.value):
        for name in list(readers)[:: 1 if number % 2 == 0 else -1]:
            turns[name].append(turn(readers[name], seed=number))
    return turns


def main(argv: list[str]) -> None:
    """Measures and prints a table for each size of row groups."""
    del argv
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    pictures = [small_jpeg(number, SIZE.value) for number in range(COUNT.value)]
    with tempfile.TemporaryDirectory() as temporary:
        for rows in map(int, ROWS.value):
            folder = Path(temporary) / str(rows)
            write_set(folder, pictures, rows)
            title = f"row groups of {rows}, {ROUNDS.value} rounds"
            print(table(summary(compare(folder), GROUPS), title, GROUPS), flush=True)


if __name__ == "__main__":
    app.run(main)
