"""Single pictures are read from Parquet files of all layouts."""

import pickle

import numpy as np
import pytest

from imagen_jax.config import DataConfig
from imagen_jax.data.formats import parquet as parquet_module
from imagen_jax.data.formats import parquet_pages
from imagen_jax.data.open import load_records
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

BLOCK = 65536
# These tests need the extra data, which CI installs for its slow tests.
EXTRAS = pytest.mark.slow


def pictures(count: int = 60) -> list[bytes | None]:
    """Mostly incompressible bytes, like those of JPEGs, and a few special cases."""
    rng = np.random.default_rng(0)
    found: list[bytes | None] = []
    for i in range(count):
        size = int(rng.choice([300, 5_000, 70_000, 200_000]))
        found.append(b"the same head " * 40 + rng.bytes(size) + b"\0" * (i * 100))
    found[3] = found[15] = None
    found[7] = b""
    found[9] = found[8]
    # Ends where a block ends (each value has 4 bytes of length in front).
    found[1] = rng.bytes(BLOCK - 8 - len(found[0]) % BLOCK)
    return found


def write(path, values, *, nested: bool, **options):
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = values
    if nested:
        column = [None if v is None and i == 3 else {"bytes": v, "path": None}
                  for i, v in enumerate(values)]  # fmt: skip
    rows = {"image": column, "text": [f"number {i}" for i in range(len(values))]}
    path.mkdir()
    pq.write_table(pa.table(rows), path / "a.parquet", **options)


def records_of(path, **fields):
    return load_records(DataConfig(source="parquet", path=str(path), **fields), None)


def places(records) -> list[parquet_pages.ValuePlace]:
    (file,) = records._files.indices
    return [parquet_pages.ValuePlace(*file.row(i)[:6]) for i in range(len(records))]


def check(records, values):
    again = pickle.loads(pickle.dumps(records))
    there = [i for i, value in enumerate(values) if value]
    assert len(again) == len(there)
    nulls = len(values) - len(there)
    kind = "rows without a picture (their download failed)"
    assert dict(again.skipped) == ({kind: nulls} if nulls else {})
    for row in np.random.default_rng(1).permutation(len(there)):
        record = again.record(row)
        assert record.image == values[there[row]], row
        assert record.captions == (f"number {there[row]}",)


@EXTRAS
@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("page_size", [None, 1 << 17])
def test_pictures_are_read_alone(tmp_path, compression, version, dictionary, nested, page_size):
    values = pictures()
    write(
        tmp_path / "set",
        values,
        nested=nested,
        compression=compression,
        data_page_version=version,
        use_dictionary=dictionary,
        data_page_size=page_size,
        write_batch_size=4 if page_size else None,
        row_group_size=23,
    )
    records = records_of(tmp_path / "set")
    there = [value for value in values if value]  # the others have no picture
    for place, value in zip(places(records), there, strict=True):
        assert place.size == len(value)
        if value and compression == "none":
            assert place.stored == len(value)
        if value and compression == "snappy":
            assert place.stored <= len(value) + 2 * BLOCK
    check(records, values)


@EXTRAS
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lz4"},
        {"use_dictionary": False, "column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}},
    ],
)
def test_unsupported_layouts_are_read_by_row_groups(tmp_path, options, monkeypatch, caplog):
    values = pictures()
    write(tmp_path / "set", values, nested=False, row_group_size=23, **options)
    records = records_of(tmp_path / "set")
    assert [r.getMessage().endswith("(their download failed)") for r in caplog.records] == [True]
    caplog.clear()
    assert {place.size for place in places(records)} == {parquet_module._IN_GROUP}
    check(records, values)
    assert not caplog.records
    monkeypatch.setattr(parquet_module, "_LARGE_BYTES", 1 << 20)
    check(records, values)
    assert [r.getMessage().count("prepare_data") for r in caplog.records] == [1]


@EXTRAS
def test_captions_and_scores_are_those_of_the_fields(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {
        "jpg": [b"one", b"two"],
        "caption": ["a", None],
        "other": [{"text": ["x", "y"]}, {"text": []}],
        "score": [0.5, None],
        "unused": [1, 2],
    }
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")

    def read(**fields):
        records = records_of(tmp_path, **fields)
        assert all(place.size == 3 for place in places(records))
        return [(records.record(i).captions, records.record(i).score) for i in range(2)]

    assert read() == [(("a",), None), ((), None)]
    assert read(score_field="score") == [(("a",), 0.5), ((), None)]
    assert read(caption_fields=("other/text",)) == [(("x", "y"), None), ((), None)]
    assert read() == [(("a",), None), ((), None)]


@EXTRAS
@pytest.mark.parametrize("options", [{}, {"data_page_version": "2.0"}, {"use_dictionary": False}])
def test_damaged_files_are_refused_or_read(tmp_path, options):
    """After changes anywhere, a picture is read (it has no checksum), raises BadItem or is skipped.

    Two of the twenty pictures are null, and most of those that are not read are these.
    """
    values = pictures(20)
    write(tmp_path / "set", values, nested=True, row_group_size=7, **options)
    path = tmp_path / "set" / "a.parquet"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    read = refused = 0
    for case in range(120):
        data = bytearray(whole)
        # Half of the changes are in the headers of pages and in the footer.
        for _ in range(4):
            span = len(data) if case % 2 else 3000
            place = int(rng.integers(span)) if rng.random() < 0.5 else -1 - int(rng.integers(1500))
            data[place] = int(rng.integers(256))
        path.write_bytes(data)
        try:
            records = records_of(tmp_path / "set")
        except UserError:
            continue
        refused += records.skipped["rows without a picture (their download failed)"]
        for i in range(len(records)):
            try:
                assert isinstance(records.record(i).image, bytes)
                read += 1
            except BadItem:
                refused += 1
    assert read > 100 and refused > 100


@EXTRAS
def test_a_file_that_changes_during_a_run_is_bad_until_it_is_read_anew(tmp_path):
    write(tmp_path / "set", pictures(20), nested=False)
    records = records_of(tmp_path / "set")
    other = pictures(30)[5:]
    (tmp_path / "set" / "a.parquet").unlink()
    (tmp_path / "set").rename(tmp_path / "old")
    with pytest.raises(BadItem):
        records.record(0)
    write(tmp_path / "set", other, nested=False)
    check(records_of(tmp_path / "set"), other)


# --- decoding without a Parquet library --------------------------------------------------------


def test_blocks_of_a_snappy_stream():
    # A literal of one byte, then copies of 64 bytes at distance 1 up to the end of the block.
    copy = bytes([63 << 2 | 2, 1, 0])
    block = b"\x00a" + copy * 1023 + bytes([62 << 2 | 2, 1, 0])
    assert parquet_pages._snappy_blocks(block * 2 + b"\x00a") == [0, len(block), 2 * len(block)]
    # A literal with a length of two bytes, which fills a block.
    literal = bytes([61 << 2]) + (BLOCK - 1).to_bytes(2, "little") + bytes(BLOCK)
    assert parquet_pages._snappy_blocks(literal + block) == [0, len(literal)]
    # Short copies: 4 to 11 bytes, distance of 11 bits.
    short = b"\x00a" + bytes([(11 - 4) << 2 | 1, 1])
    assert parquet_pages._snappy_blocks(short) == [0]
    # Elements that copy from the previous block or cross the end of a block.
    assert parquet_pages._snappy_blocks(block + copy) == []
    assert parquet_pages._snappy_blocks(b"\x00a" + literal) == []
    with pytest.raises(IndexError):
        parquet_pages._snappy_blocks(bytes([1]))


def test_runs_of_numbers():
    # The example of the Parquet format: 0 to 7 in three bits each.
    packed = bytes([0b10001000, 0b11000110, 0b11111010])
    assert parquet_pages._hybrid(b"\x03" + packed, 3, 8).tolist() == list(range(8))
    # A run of 300 fives (300 << 1 in two bytes), then packed numbers up to the count.
    runs = bytes([0xD8, 0x04, 5]) + b"\x03" + packed
    assert parquet_pages._hybrid(runs, 3, 304).tolist() == [5] * 300 + [0, 1, 2, 3]
    assert parquet_pages._hybrid(b"", 3, 0).tolist() == []
    assert parquet_pages._hybrid(bytes([6]), 0, 3).tolist() == [0, 0, 0]
    with pytest.raises(IndexError):
        parquet_pages._hybrid(bytes([2, 1]), 3, 5)
