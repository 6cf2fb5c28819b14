"""Parquet and Arrow files with other columns than usual. Both formats read the same tables."""

import base64
import json
import os
import pickle
import unicodedata

import layouts
import pytest

from imagen_jax.config import DataConfig
from imagen_jax.data.open import load_records
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

# These tests need the extra data, which CI installs for its slow tests.
pytestmark = pytest.mark.slow
FORMATS = pytest.mark.parametrize("source", ["parquet", "arrow"])


def write(path, source, table, **options):
    """Also files whose names are not UTF-8, which pyarrow does not open by name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.{source}"), "wb") as file:
        if source == "parquet":
            pq.write_table(table, file, **options)
        else:
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)


def rows(*numbers):
    import pyarrow as pa

    columns = {"image": [layouts.png(i) for i in numbers], "text": [f"t{i}" for i in numbers]}
    return pa.table(columns)


def load(path, source, **settings):
    return load_records(DataConfig(source=source, path=str(path), **settings), None)


def captions(records):
    again = pickle.loads(pickle.dumps(records))
    return [again.record(i).captions[0] for i in range(len(again))]


@FORMATS
@pytest.mark.parametrize("compression", ["snappy", "lz4"])  # lz4 is read by row groups
def test_rows_without_a_picture_are_left_out(tmp_path, source, compression):
    import pyarrow as pa

    values = [json.loads(layouts.img2dataset_json(i)) for i in range(5)]
    for i, value in enumerate(values):
        value["jpg"] = layouts.png(i) if i % 2 else None
    table = pa.Table.from_pylist(values)
    write(tmp_path / "0", source, table, compression=compression, row_group_size=2)
    records = load(tmp_path, source)
    assert captions(records) == [layouts.caption(1), layouts.caption(3)]
    assert list(records.skipped.values()) == [3]
    assert "rows without a picture" in next(iter(records.skipped))
    write(tmp_path / "none" / "0", source, table.slice(0, 1))
    with pytest.raises(UserError, match="1 rows without a picture"):
        load(tmp_path / "none", source)


@FORMATS
def test_structs_without_bytes_and_path_are_left_out(tmp_path, source):
    import pyarrow as pa

    (tmp_path / "a.png").write_bytes(layouts.png(1))
    pictures = [
        {"bytes": layouts.png(0), "path": None},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "a.png"},
    ]
    write(tmp_path / "0", source, pa.table({"image": pictures, "text": list("abcd")}))
    records = load(tmp_path, source)
    assert captions(records) == ["a", "d"] and records.skipped.total() == 2
    assert records.record(1).image == layouts.png(1)


@FORMATS
def test_files_with_different_columns(tmp_path, source):
    import pyarrow as pa

    write(tmp_path / "0", source, pa.table({"url": ["x"], "text": ["no picture"]}))
    write(tmp_path / "1", source, rows(1, 2))
    write(tmp_path / "2", source, pa.table({"caption": ["c3"], "jpg": [layouts.png(3)]}))
    write(tmp_path / "3", source, pa.table({"jpg": [layouts.png(4)]}))
    records = load(tmp_path, source)
    found = [records.record(i).captions for i in range(4)]
    assert found == [("t1",), ("t2",), ("c3",), ()]
    assert dict(records.skipped) == {"files without a column of pictures": 1}
    assert [len(set(records.stamps().tolist()))] == [4]
    # A column that the config names may also be in some of the files only.
    assert load(tmp_path, source, caption_fields=("caption",)).record(2).captions == ("c3",)


@FORMATS
def test_missing_captions_name_the_columns_and_the_settings(tmp_path, source):
    import pyarrow as pa

    write(tmp_path / "0", source, pa.table({"image": [layouts.png(0)], "alt": ["words"]}))
    with pytest.raises(UserError, match=r"it has image, alt. Name the column in .*caption_fields"):
        load(tmp_path, source)
    with pytest.raises(UserError, match="no column title; it has image, alt"):
        load(tmp_path, source, caption_fields=("title",))
    with pytest.raises(UserError, match="no column p; it has image, alt"):
        load(tmp_path, source, caption_fields=("alt",), score_field="p")
    assert captions(load(tmp_path, source, caption_fields=("alt",))) == ["words"]


def values_of_a_picture():
    import pyarrow as pa

    data = layouts.png(0)
    text = base64.b64encode(data).decode()
    accent = unicodedata.normalize("NFD", "é")
    return {
        "path": pa.array(["p.png"]),
        "path with accents": pa.array([f"{accent}.png"]),
        "path in a large string": pa.array(["p.png"], pa.large_string()),
        "path in a dictionary": pa.array(["p.png"]).dictionary_encode(),
        "path in a string view": pa.array(["p.png"], pa.string_view()),
        "base64": pa.array([text]),
        "base64 for addresses": pa.array([base64.urlsafe_b64encode(data).decode().rstrip("=")]),
        "base64 in lines": pa.array([base64.encodebytes(data).decode()]),
        "base64 in bytes": pa.array([text.encode()]),
        "data address": pa.array([f"data:image/png;base64,{text}"]),
        "list of uint8": pa.array([list(data)], pa.list_(pa.uint8())),
        "list of integers": pa.array([list(data)]),
        "large list": pa.array([list(data)], pa.large_list(pa.uint8())),
        "large bytes": pa.array([data], pa.large_binary()),
        "fixed bytes": pa.array([data], pa.binary(len(data))),
        "bytes in a dictionary": pa.array([data]).dictionary_encode(),
        "struct": pa.array([{"bytes": data, "path": "elsewhere.png"}]),
        "struct with base64": pa.array([{"bytes": text}]),
    }


@FORMATS
def test_pictures_in_all_types(tmp_path, source):
    import pyarrow as pa

    for number, (what, column) in enumerate(values_of_a_picture().items()):
        folder = tmp_path / str(number)
        write(folder / "0", source, pa.table({"image": column, "text": ["t"]}))
        (folder / "p.png").write_bytes(layouts.png(0))
        (folder / "é.png").write_bytes(layouts.png(0))
        assert pickle.loads(pickle.dumps(load(folder, source))).record(0).image == layouts.png(0), (
            what
        )


@FORMATS
def test_columns_that_hold_no_picture_are_refused_by_name(tmp_path, source):
    import pyarrow as pa

    pixels = [[[[1, 2, 3]]]]
    for number, (column, message) in enumerate(
        (
            (pixels, r"column image is of type list.*encode the pictures as PNG"),
            ([[layouts.png(0)]], "column image is of type list"),
            ([3], "column image is of type int64"),
            ([{"height": 1}], "column image is of type struct"),
            (["https://example.org/a.png"], "addresses of its pictures.*img2dataset"),
            ([{"path": "s3://bucket/a.png"}], "addresses of its pictures.*img2dataset"),
        )
    ):
        write(tmp_path / str(number) / "0", source, pa.table({"image": column, "text": ["t"]}))
        with pytest.raises(UserError, match=message):
            load(tmp_path / str(number), source)


@FORMATS
def test_paths_name_only_files(tmp_path, source):
    import pyarrow as pa

    os.mkfifo(tmp_path / "pipe")
    names = ["pipe", "/dev/zero", "gone.png", "x.png" * 1000, "a\0b", "."]
    table = pa.table({"file_name": names, "text": ["t"] * len(names)})
    write(tmp_path / "0", source, table)
    records = load(tmp_path, source)
    for i in range(len(names)):
        with pytest.raises(BadItem):
            records.record(i)


@FORMATS
def test_damaged_base64_is_bad(tmp_path, source):
    import pyarrow as pa

    write(tmp_path / "0", source, pa.table({"image": ["A" * 101], "text": ["t"]}))
    with pytest.raises(BadItem) as raised:
        load(tmp_path, source).record(0)
    assert raised.value.kind == "damaged base64"


@FORMATS
def test_what_only_looks_like_base64_is_left_as_it_is(tmp_path, source):
    import pyarrow as pa

    ppm = b"P3 4 4 255 " + b"10 20 30 " * 16  # digits and spaces
    write(tmp_path / "bytes" / "0", source, pa.table({"image": [ppm], "text": ["t"]}))
    assert load(tmp_path / "bytes", source).record(0).image == ppm
    name = "0123456789abcdef" * 4  # such as the SHA-256 of a picture
    write(tmp_path / "names" / "0", source, pa.table({"image": [name], "text": ["t"]}))
    (tmp_path / "names" / name).write_bytes(layouts.png(0))
    assert load(tmp_path / "names", source).record(0).image == layouts.png(0)


@FORMATS
@pytest.mark.parametrize("compression", ["snappy", "lz4"])
def test_empty_values_are_rows_without_a_picture(tmp_path, source, compression):
    import pyarrow as pa

    png = layouts.png(0)
    (tmp_path / "p.png").write_bytes(png)
    structs = [{"bytes": b"", "path": ""}, {"bytes": b"", "path": "p.png"}, {"bytes": png}]
    for number, column in enumerate(
        (
            pa.array([b"", None, png]),
            pa.array(["", None, "p.png"]),
            pa.array([b"", None, png]).dictionary_encode(),
            pa.array([[], None, list(png)], pa.list_(pa.uint8())),
            pa.array([None, *structs[:1], structs[1]]),
            pa.array([None, structs[0], structs[2]]),
        )
    ):
        table = pa.table({"image": column, "text": list("abc")})
        folder = tmp_path / str(number)
        write(folder / "0", source, table, compression=compression)
        (folder / "p.png").write_bytes(png)
        records = load(folder, source)
        assert captions(records) == ["c"] and records.skipped.total() == 2, number
        assert records.record(0).image == png


@FORMATS
def test_a_file_whose_downloads_all_failed(tmp_path, source):
    """Its column of pictures has no type."""
    import pyarrow as pa

    write(tmp_path / "0", source, pa.table({"image": pa.nulls(2), "text": ["a", "b"]}))
    write(tmp_path / "1", source, rows(1))
    records = load(tmp_path, source)
    assert captions(records) == ["t1"] and records.skipped.total() == 2


@FORMATS
@pytest.mark.parametrize("name", ["image", "text"])
def test_several_columns_of_one_name_are_refused(tmp_path, source, name):

    columns = rows(1, 2)
    write(tmp_path / "0", source, columns.append_column(name, columns.column(name)))
    with pytest.raises(UserError, match=f"has several columns {name}"):
        load(tmp_path, source)


@FORMATS
def test_names_that_are_not_utf8(tmp_path, source):
    write(tmp_path / os.fsdecode(b"caf\xe9"), source, rows(1, 2))
    assert captions(load(tmp_path, source)) == ["t1", "t2"]


# --- what Hugging Face's datasets leaves beside the data ----------------------------------------


def test_results_of_map_and_filter_are_not_read(tmp_path):
    import pyarrow as pa

    write(tmp_path / "x-train", "arrow", rows(1, 2, 3))
    chosen = pa.table({"indices": pa.array([0, 2], pa.uint64())})
    write(tmp_path / "cache-0123456789abcdef", "arrow", chosen)
    assert captions(load(tmp_path, "arrow")) == ["t1", "t2", "t3"]
    with pytest.raises(UserError, match=r"row numbers of a filtered set.*save_to_disk"):
        load(tmp_path / "cache-0123456789abcdef.arrow", "arrow")
    # A result of `map` that is asked for by its name is read.
    write(tmp_path / "cache-mapped", "arrow", rows(7))
    assert captions(load(tmp_path / "cache-mapped.arrow", "arrow")) == ["t7"]


def test_a_cached_filter_is_not_read(tmp_path):
    import datasets

    layouts.hugging_face_dataset(5).save_to_disk(tmp_path / "set")
    data = datasets.load_from_disk(str(tmp_path / "set"))
    data.filter(lambda score: score > 0.15, input_columns="score")
    assert list((tmp_path / "set").glob("cache-*"))
    assert len(load(tmp_path / "set", "arrow")) == 5
    (tmp_path / "set" / "state.json").unlink()
    assert len(load(tmp_path / "set", "arrow")) == 5


def test_a_choice_of_rows_is_kept(tmp_path):
    """Old versions saved a filtered set as all its rows, with the numbers of those that remain."""
    import pyarrow as pa

    write(tmp_path / "dataset", "arrow", rows(0, 1, 2))
    write(tmp_path / "indices", "arrow", pa.table({"indices": pa.array([2, 0], pa.uint64())}))
    state = {
        "_data_files": [{"filename": "dataset.arrow"}],
        "_indices_data_files": [{"filename": "indices.arrow"}],
    }
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert captions(load(tmp_path, "arrow")) == ["t2", "t0"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"_data_files": 3}', '{"_data_files": [{"filename": "../x"}]}', "\xff"],
)
def test_damaged_lists_of_files(tmp_path, text):
    write(tmp_path / "dataset", "arrow", rows(0))
    (tmp_path / "state.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"state\.json"):
        load(tmp_path, "arrow")


def test_splits_of_saved_sets(tmp_path):
    import datasets

    data = layouts.hugging_face_dataset(5)
    parts = {"train": data.select([0, 1]), "validation": data.select([2]), "test": data.select([3])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "dict")
    for name, part in parts.items():
        part.save_to_disk(tmp_path / "folders" / name)
    for path in (tmp_path / "dict", tmp_path / "folders"):
        assert len(load(path, "arrow")) == 2
        assert captions(load(path, "arrow", split="val")) == [layouts.caption(2)]
        assert len(load(path, "arrow", split="train+test")) == 3
        with pytest.raises(UserError, match=r"no split 'extra'; it has t.*validation"):
            load(path, "arrow", split="extra")


@FORMATS
def test_splits_of_files(tmp_path, source):
    write(tmp_path / "default" / "train" / "0000", source, rows(1))
    write(tmp_path / "default" / "test" / "0000", source, rows(2))
    assert captions(load(tmp_path, source)) == ["t1"]
    assert captions(load(tmp_path, source, split="test")) == ["t2"]
    with pytest.raises(UserError, match="no split 'val'; it has test, train "):
        load(tmp_path, source, split="val")
