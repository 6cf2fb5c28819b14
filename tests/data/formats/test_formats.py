"""Every format gives the same pictures and captions, and copes with damaged files."""

import gzip
import json
import os
import pickle
import tarfile
from pathlib import Path

import layouts
import numpy as np
import pytest

from imagen_jax.config import DataConfig
from imagen_jax.data import images
from imagen_jax.data.formats.array_record import CONTENT, encode_record
from imagen_jax.data.formats.fields import captions_in_fields, captions_in_value
from imagen_jax.data.formats.webdataset import TarRecords
from imagen_jax.data.open import load_records, load_source
from imagen_jax.data.picture_sizes import load_sizes
from imagen_jax.data.pipeline import batches
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem, FilteredItem
from imagen_jax.errors import UserError
from imagen_jax.stores.writer import StorePlan, write_shards

COUNT = 23


def config(source, path, **settings) -> DataConfig:
    return DataConfig(source=source, path=str(path), **settings)


def read_all(records) -> dict[str, Record]:
    return {r.key: r for r in (records.record(i) for i in range(len(records)))}


def check_measured(records) -> None:
    """The sizes of all pictures are found twice, the second time by their stamps."""
    for _ in range(2):
        assert load_sizes(records).tolist() == [[20, 20]] * len(records)
    stamps = records.stamps()
    assert stamps.dtype == np.uint64 and len(set(stamps.tolist())) == len(records)
    assert (records.folder / ".imagen_jax" / "picture-sizes.table").is_file()


def write_folder(path):
    path.mkdir()
    for i in range(COUNT):
        (path / f"{i:03}.png").write_bytes(layouts.png(i))
        (path / f"{i:03}.txt").write_text(layouts.caption(i))


def write_prepared(path):
    def read(start, stop, notes):
        for i in range(start, stop):
            yield encode_record(Record(str(i), layouts.png(i), (layouts.caption(i),), i / 10))

    write_shards(StorePlan(str(path), length=COUNT, shard_size=5, meta={"content": CONTENT}), read)


def write_saved(path):
    layouts.hugging_face_dataset(COUNT).save_to_disk(path, num_shards=3)


def write_hf_parquet(path):
    path.mkdir()
    data = layouts.hugging_face_dataset(COUNT)
    data.select(range(12)).to_parquet(path / "train-00000-of-00002.parquet")
    data.select(range(12, COUNT)).to_parquet(path / "train-00001-of-00002.parquet")
    data.to_parquet(path / "test-00000-of-00001.parquet")


# These tests need the extras data and data-test, which CI installs for its slow tests.
EXTRAS = pytest.mark.slow
WRITERS = {
    "folder": ("folder", write_folder),
    "img2dataset tars": ("webdataset", lambda p: layouts.write_img2dataset_tars(p, COUNT)),
    "img2dataset parquet": ("parquet", lambda p: layouts.write_img2dataset_parquet(p, COUNT)),
    "Hugging Face parquet": ("parquet", write_hf_parquet),
    "Hugging Face on disk": ("arrow", write_saved),
    "prepared": ("array_record", write_prepared),
}


LAYOUTS = [
    pytest.param(name, marks=EXTRAS if source in ("parquet", "arrow") else ())
    for name, (source, _) in WRITERS.items()
]
SHARDED = [layout for layout in LAYOUTS if layout.values != ("folder",)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_item_is_read(tmp_path, layout):
    source, write = WRITERS[layout]
    write(tmp_path / "set")
    records = load_records(config(source, tmp_path / "set"), None)
    assert len(records) == COUNT and not records.skipped
    again = pickle.loads(pickle.dumps(records))
    assert len({again.record(i).key for i in range(COUNT)}) == COUNT
    for i in range(COUNT):
        assert records.record(i).image == again.record(i).image == layouts.png(i)
        assert records.record(i).captions == (layouts.caption(i),)
    check_measured(records)
    data = load_source(config(source, tmp_path / "set"), "train", 20)
    for i in (22, 0, 11):
        item = data.item(i)
        np.testing.assert_array_equal(item.image, layouts.pixels(i))
        assert item.caption == layouts.caption(i)


@pytest.mark.parametrize("layout", SHARDED)
def test_scores(tmp_path, layout):
    source, write = WRITERS[layout]
    write(tmp_path / "set")
    field = "aesthetic" if "img2dataset" in layout else "score"
    data = load_source(
        config(source, tmp_path / "set", score_field=field, min_score=0.95), "train", 20
    )
    for i in range(COUNT):
        if i >= 10:
            assert data.item(i).caption == layouts.caption(i)
        else:
            with pytest.raises(FilteredItem) as raised:
                data.item(i)
            assert raised.value.kind == "score too low"


@EXTRAS
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_tfds(tmp_path, file_format):
    builder = layouts.tfds_builder(tmp_path, COUNT, file_format)
    records = load_records(config("tfds", builder.data_dir), None)
    assert len(records) == COUNT and not records.skipped
    again = pickle.loads(pickle.dumps(records))
    for i in range(COUNT):
        assert records.record(i).image == again.record(i).image == layouts.png(i)
        captions = tuple(f"{layouts.caption(i)}, {k}" for k in range(5))
        assert records.record(i).captions == captions
    check_measured(records)
    both = load_records(config("tfds", builder.data_dir, split="train+val"), None)
    assert len(both) == 2 * COUNT
    assert both.record(COUNT).image == layouts.png(1000)
    check_measured(both)
    with pytest.raises(UserError, match=r"'test'.*train, val"):
        load_records(config("tfds", builder.data_dir, split="test"), None)
    with pytest.raises(UserError, match=r"dataset_info\.json"):
        load_records(config("tfds", tmp_path), None)


@EXTRAS
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("is_gone", [True, False])
def test_damaged_tfds_files_cost_their_items_only(tmp_path, file_format, is_gone):
    builder = layouts.tfds_builder(tmp_path, COUNT, file_format)
    settings = config("tfds", builder.data_dir, split="train+val")
    data = load_source(settings, "train", 20)
    (file,) = map(Path, builder.info.splits["train"].filepaths)
    if is_gone:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    outcomes = []
    for i in range(2 * COUNT):
        try:
            outcomes.append(data.item(i).caption.split(",")[0])
        except BadItem as error:
            outcomes.append(error.kind)
    assert outcomes[COUNT:] == [layouts.caption(1000 + i) for i in range(COUNT)]
    kinds = {"array_record": "damaged record", "tfrecord": "shard is gone"}
    if is_gone or file_format == "array_record":
        assert set(outcomes[:COUNT]) == {kinds[file_format]}
    else:
        whole = outcomes.index("shard is cut short")
        assert outcomes[:whole] == [layouts.caption(i) for i in range(whole)] and whole > 5
        assert set(outcomes[whole:COUNT]) == {"shard is cut short"}


@EXTRAS
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_coco_captions(tmp_path, file_format):
    """The features of the real builder, with examples that TFDS generates for them."""
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=6):
        coco = tfds.builder("coco_captions/2014")
        examples = list(tfds.as_numpy(coco.as_dataset(split="val")))

    def rows(columns):
        """Decoded columns, which TFDS generates with different lengths, as rows."""
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=False)
        ]

    for example in examples:
        example["captions"] = rows(example["captions"])
        example["objects"] = []

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "coco_captions"
        VERSION = coco.version

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=coco.info.features, disable_shuffling=True
            )

        def _split_generators(self, manager):
            return {"val": enumerate(examples)}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Prepared(data_dir=str(tmp_path), file_format=file_format)
    builder.download_and_prepare()
    data = load_source(config("tfds", builder.data_dir, split="val"), "train", 16)
    assert len(data) == 6
    for i, example in enumerate(examples):
        item = data.item(i)
        texts = [" ".join(row["text"].decode().split()) for row in example["captions"]]
        assert [item.caption, *item.other_captions] == [text for text in texts if text]
        assert item.image.shape == (16, 16, 3)
    stream = batches(data, batch_size=3, image_size=16, seed=0)
    assert next(stream)["left_out"] == {"bad": {}, "filtered": {}}
    stream.close()


def test_splits_are_by_position_and_grow(tmp_path):
    layouts.write_img2dataset_tars(tmp_path, 100, 50)
    sides = [read_all(load_records(config("webdataset", tmp_path), s)) for s in SIDES]
    assert [len(side) for side in sides] == [95, 5] and not sides[0].keys() & sides[1].keys()
    assert len(sides[0] | sides[1]) == 100
    layouts.write_img2dataset_tars(tmp_path, 150, 50)
    grown = [read_all(load_records(config("webdataset", tmp_path), s)) for s in SIDES]
    assert [len(side) for side in grown] == [143, 7]
    assert sides[0].keys() <= grown[0].keys() and sides[1].keys() <= grown[1].keys()


SIDES = ("train", "held_out")


def test_sizes_of_a_split_are_read_from_headers(tmp_path, monkeypatch):
    layouts.write_img2dataset_tars(tmp_path, 100, 50)
    train = load_records(config("webdataset", tmp_path), "train")
    monkeypatch.setattr(TarRecords, "record", None)
    assert load_sizes(train).tolist() == [[20, 20]] * 95


def test_few_pictures_are_in_both_splits(tmp_path):
    layouts.write_img2dataset_tars(tmp_path, 99)
    assert [len(load_records(config("webdataset", tmp_path), s)) for s in SIDES] == [99, 99]


@EXTRAS
def test_saved_splits(tmp_path):
    import datasets

    data = layouts.hugging_face_dataset(4)
    splits = {"train": data, "test": data.select(range(2))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path)
    assert len(load_records(config("arrow", tmp_path), None)) == 4
    assert len(load_records(config("arrow", tmp_path, split="test"), None)) == 2
    with pytest.raises(UserError, match="no split 'val'; it has train, test "):
        load_records(config("arrow", tmp_path, split="val"), None)


@EXTRAS
def test_pictures_beside_a_table(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.png").write_bytes(layouts.png(1))
    rows = [
        {"image": {"bytes": None, "path": "a.png"}, "text": "one"},
        {"image": {"bytes": None, "path": "gone.png"}, "text": "two"},
        {"image": None, "text": "three"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    records = load_records(config("parquet", tmp_path), None)
    assert records.record(0).image == layouts.png(1)
    with pytest.raises(BadItem) as raised:
        records.record(1)
    assert raised.value.kind == "file is gone"
    assert len(records) == 2
    assert dict(records.skipped) == {"rows without a picture (their download failed)": 1}


def test_fields(tmp_path):
    files = [
        ("a/0.cls", b"3"),
        ("a/0.jpg", b"the jpg"),
        ("a/0.png", b"the png"),
        ("a/0.json", json.dumps({"alt": ["one", " two\n"], "title": "three"}).encode()),
        ("a/0.txt", b"caf\xe9"),
    ]
    layouts.write_tar(tmp_path / "x.tar", files)

    def only(**fields):
        return load_records(config("webdataset", tmp_path, **fields), None).record(0)

    assert (only().image, only().captions) == (b"the jpg", ("caf\ufffd",))
    assert only(image_field="png").image == b"the png"
    assert only(caption_fields=("alt",)).captions == ("one", "two")
    assert only(caption_fields=("txt", "title")).captions == ("caf\ufffd", "three")
    with pytest.raises(UserError, match="no picture with a caption"):
        only(image_field="webp")


def test_captions_in_all_shapes():
    assert captions_in_value(np.array([b"a", b" b "], object)) == ["a", "b"]
    assert captions_in_value([{"raw": "a"}, {"text": "b"}, {"id": 3}, "", None]) == ["a", "b"]
    assert captions_in_value(b"\xef\xbb\xbfa\tb") == ["a b"]
    assert captions_in_value(3) == captions_in_value(None) == []
    assert captions_in_fields({"text": "", "captions": {"text": ["x"]}}, ()) == ("x",)
    assert captions_in_fields({"a": {"b": "x"}, "caption": "y"}, ("a/b", "none")) == ("x",)


@pytest.mark.parametrize(
    "source",
    [
        "webdataset",
        "array_record",
        *(pytest.param(source, marks=EXTRAS) for source in ("parquet", "arrow", "tfds")),
    ],
)
def test_missing_paths_name_the_remedy(tmp_path, source):
    for path in ("", tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=r"path|record store"):
            load_source(config(source, path), "train", 8)


@EXTRAS
def test_missing_columns_name_the_remedy(tmp_path):
    layouts.write_img2dataset_parquet(tmp_path, 3)
    for fields, message in (
        ({"image_field": "img"}, "no column img.*image_field"),
        ({"caption_fields": ("alt",)}, "no column alt; it has url, caption"),
        ({"score_field": "p"}, "no column p"),
    ):
        with pytest.raises(UserError, match=message):
            load_records(config("parquet", tmp_path, **fields), None)


# --- tars -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_layouts_and_long_names(tmp_path, layout):
    name = "folder/" * 12 + "n" * 90 if layout != tarfile.USTAR_FORMAT else "folder/n"
    files = [(f"{name}{i}.{x}", layouts.png(i)) for i in range(3) for x in ("png", "txt")]
    layouts.write_tar(tmp_path / "x.tar", files, layout)
    records = load_records(config("webdataset", tmp_path), None)
    assert [records.record(i).image for i in range(3)] == [layouts.png(i) for i in range(3)]


def test_the_index_is_built_once_and_again_when_the_tar_changes(tmp_path, monkeypatch, capsys):
    layouts.write_img2dataset_tars(tmp_path / "set", 20)
    settings = config("webdataset", tmp_path / "set")
    assert len(load_records(settings, None)) == 20
    assert "2 of 2 files indexed" in capsys.readouterr().out
    # With the plugin of HEIC more files are pictures, so its index is another one.
    names = [p.name.removesuffix("-heif") for p in (tmp_path / "set" / ".imagen_jax").iterdir()]
    assert sorted(names) == [
        "00000.tar.tar-any",
        "00001.tar.tar-any",
    ]
    load_records(settings, None)
    assert capsys.readouterr().out == ""
    layouts.write_tar(tmp_path / "set" / "00001.tar", layouts.img2dataset_files(7))
    records = load_records(settings, None)
    assert "1 of 1 files indexed" in capsys.readouterr().out
    assert len(records) == 11 and records.record(10).image == layouts.png(7)


def test_the_index_of_a_read_only_set_is_stored_in_the_cache(tmp_path, monkeypatch):
    layouts.write_img2dataset_tars(tmp_path / "set", 5)
    # A file in place of the folder makes writing fail, even for the superuser.
    (tmp_path / "set" / ".imagen_jax").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(load_records(config("webdataset", tmp_path / "set"), None)) == 5
    assert len([p for p in (tmp_path / "cache").rglob("*") if p.is_file()]) == 1


def test_a_damaged_index_is_built_again(tmp_path):
    layouts.write_img2dataset_tars(tmp_path, 5)
    settings = config("webdataset", tmp_path)
    load_records(settings, None)
    (index,) = (tmp_path / ".imagen_jax").iterdir()
    whole = index.read_bytes()
    for damaged in (whole[:-3], b"", whole[:8]):
        index.write_bytes(damaged)
        assert len(load_records(settings, None)) == 5
        assert index.read_bytes() == whole


def test_a_cut_tar_keeps_its_whole_items(tmp_path):
    layouts.write_img2dataset_tars(tmp_path, 10)
    path = tmp_path / "00000.tar"
    whole = path.read_bytes()
    ends = []
    with tarfile.open(path) as tar:
        for member in tar:
            ends.append(member.offset_data + member.size)
    settings = config("webdataset", tmp_path)
    for cut in range(600, ends[-1], 311):
        path.write_bytes(whole[:cut])
        # A picture with its JSON is an item too; a picture alone is not.
        num_whole = sum(ends[3 * i + 1] <= cut for i in range(10))
        if num_whole == 0:
            with pytest.raises(UserError, match="no picture with a caption"):
                load_records(settings, None)
            continue
        records = load_records(settings, None)
        assert len(records) == num_whole
        assert records.skipped["shards are cut short or damaged; their whole items are used"] == 1
        for i in range(num_whole):
            assert records.record(i).image == layouts.png(i)
            assert records.record(i).captions == (layouts.caption(i),)


def captions_of(records) -> list[str]:
    return [records.record(i).captions[0] for i in range(len(records))]


def test_names_with_further_dots(tmp_path):
    files = [(f"a/0.{i}.{x}", layouts.png(i)) for i in range(17, 20) for x in ("png", "txt")]
    files = [(n, b"text of " + n.encode() if n.endswith("txt") else data) for n, data in files]
    files += [("b.jpg", b"b"), ("b.txt", b"text of b"), ("b.mask.png", b"mask")]
    files += [("c.v2.PNG", b"c"), ("c.v2.json", b'{"caption": "text of c"}')]
    files += [("d.1.png", b"none"), ("d.2.png", b"none")]
    layouts.write_tar(tmp_path / "x.tar", files)
    records = load_records(config("webdataset", tmp_path), None)
    names = [f"a/0.{i}.txt" for i in range(17, 20)] + ["b", "c"]
    assert captions_of(records) == [f"text of {name}" for name in names]
    assert records.record(1).image == layouts.png(18) and records.record(3).image == b"b"
    reason = "pictures whose names have further dots, without a text of the same name"
    assert records.skipped == {reason: 2}
    # One of several pictures of an item is still chosen by its whole ending.
    masks = load_records(config("webdataset", tmp_path, image_field="mask.png"), None)
    assert [masks.record(0).image, len(masks)] == [b"mask", 1]


def test_concatenated_tars(tmp_path):
    parts = []
    for start in (0, 3, 6):
        files = [file for i in range(start, start + 3) for file in layouts.img2dataset_files(i)]
        layouts.write_tar(tmp_path / "part", files)
        parts.append((tmp_path / "part").read_bytes())
    (tmp_path / "x.tar").write_bytes(b"".join(parts))
    records = load_records(config("webdataset", tmp_path), None)
    assert captions_of(records) == [layouts.caption(i) for i in range(9)] and not records.skipped
    assert [records.record(i).image for i in range(9)] == [layouts.png(i) for i in range(9)]
    # What follows is no tar, or is cut.
    for rest, count in ((b"not a tar" * 100, 9), (parts[0][: len(parts[0]) // 8], 9)):
        (tmp_path / "x.tar").write_bytes(b"".join([*parts, rest]))
        records = load_records(config("webdataset", tmp_path), None)
        assert len(records) >= count
        assert records.skipped["shards are cut short or damaged; their whole items are used"] == 1


def test_files_of_an_item_need_not_be_adjacent(tmp_path):
    pictures = [(f"{i}.png", layouts.png(i)) for i in range(5)]
    texts = [(f"{i}.txt", layouts.caption(i).encode()) for i in (3, 1, 4, 0, 9)]
    layouts.write_tar(tmp_path / "x.tar", [*pictures, *texts])
    records = load_records(config("webdataset", tmp_path), None)
    assert captions_of(records) == [layouts.caption(i) for i in (0, 1, 3, 4)]
    assert records.record(2).image == layouts.png(3)
    assert records.skipped == {"items without a picture or without a caption": 2}


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar"])
def test_compressed_tars_are_named(tmp_path, name):
    layouts.write_tar(tmp_path / "plain", layouts.img2dataset_files(0))
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=r"1 tars are compressed.*gunzip"):
            load_records(config("webdataset", path), None)
    layouts.write_tar(tmp_path / "y.tar", layouts.img2dataset_files(1))
    records = load_records(config("webdataset", tmp_path), None)
    assert len(records) == 1 and sum(records.skipped.values()) == 1


def test_hidden_twins_links_and_other_formats_in_tars(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_formats", lambda: {"PNG": (".png",), "AVIF": (".avif",)})
    files = layouts.img2dataset_files(0)
    files += [("._a.png", b"\0"), ("__MACOSX/a.png", b"\0"), ("__MACOSX/a.txt", b"no")]
    files += [(".ipynb_checkpoints/b.png", b"\0"), ("./c.png", b"c"), ("./c.txt", b"text of c")]
    files += [("d.jp2", b"d"), ("d.txt", b"d"), ("e.heic", b"e")]
    layouts.write_tar(tmp_path / "x.tar", files)
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        link = tarfile.TarInfo("f.png")
        link.type, link.linkname = tarfile.LNKTYPE, "000000000.png"
        tar.addfile(link)
    records = load_records(config("webdataset", tmp_path), None)
    assert captions_of(records) == [layouts.caption(0), "text of c"]
    assert records.skipped == {
        "hidden pictures (a dot in front of the name, or in a folder such as __MACOSX)": 3,
        "pictures ending in .jp2 are not read: convert them to JPEG or PNG": 1,
        "pictures ending in .heic are not read: pip install 'imagen-jax[heif]' to read them": 1,
        "items without a picture or without a caption": 1,
        "links in tars, which are not followed": 1,
    }


def test_braces_and_several_paths(tmp_path):
    for i in range(13):
        layouts.write_tar(tmp_path / "a" / f"{i:03}.tar", layouts.img2dataset_files(i))
    layouts.write_tar(tmp_path / "b{x}" / "y.tar", layouts.img2dataset_files(20))
    for path, count in (
        ("a/{000..012}.tar", 13),
        ("a/{009..002}.tar", 8),
        ("a/00{1,3,{5..7}}.tar", 5),
        ("a/{000..002}.tar::a/012.tar::b{x}", 5),
        ("a/0*.tar::a/{000..001}.tar", 13),
        ("{a,b{x}}", 14),
    ):
        parts = "::".join(str(tmp_path / part) for part in path.split("::"))
        records = load_records(config("webdataset", parts), None)
        assert len(records) == count, path
        assert len(set(records.stamps().tolist())) == count
    for path in ("a/{000..013}.tar", "a::nowhere"):
        parts = "::".join(str(tmp_path / part) for part in path.split("::"))
        with pytest.raises(UserError, match=r"(013\.tar|nowhere) does not exist"):
            load_records(config("webdataset", parts), None)
    with pytest.raises(UserError, match="more than 1,000,000 files"):
        load_records(config("webdataset", tmp_path / "{0..99999999999}.tar"), None)


def test_items_without_caption_or_picture_are_counted(tmp_path):
    files = layouts.img2dataset_files(0)
    files += [("1.png", layouts.png(1)), ("2.txt", b"words"), ("3.json", b"{}")]
    files += [("4.png", layouts.png(4)), ("4.txt", b" \n"), ("README", b"")]
    files += [("5.png", layouts.png(5)), ("5.json", b"[]"), ("6.png", b""), ("6.txt", b"empty")]
    layouts.write_tar(tmp_path / "x.tar", files)
    (tmp_path / "y.tar").write_bytes(b"")
    (tmp_path / "z.tar").write_bytes(b"not a tar" * 300)
    data = load_source(config("webdataset", tmp_path), "train", 8)
    assert data.records.skipped == {
        "items without a picture or without a caption": 3,
        "shards are cut short or damaged; their whole items are used": 2,
    }
    assert data.item(0).caption == layouts.caption(0)
    for index, kind in ((1, "no caption"), (2, "damaged JSON"), (3, "empty file")):
        with pytest.raises(BadItem) as raised:
            data.item(index)
        assert raised.value.kind == kind


@pytest.mark.parametrize("layout", SHARDED)
def test_a_shard_that_disappears_or_is_cut_costs_its_items_only(tmp_path, layout, caplog):
    source, write = WRITERS[layout]
    write(tmp_path / "set")
    settings = config(source, tmp_path / "set")
    data = load_source(settings, "train", 20)
    suffixes = {"webdataset": ".tar", "parquet": ".parquet", "arrow": ".arrow"}
    shards = sorted((tmp_path / "set").rglob(f"*{suffixes.get(source, '.array_record')}"))
    shards = [shard for shard in shards if "test" not in shard.name]
    assert len(shards) >= 2
    shards[0].unlink()
    if source != "arrow":  # truncating a mapped file would end the process
        shards[-1].write_bytes(shards[-1].read_bytes()[:100])
    kinds, good = {}, []
    for i in range(COUNT):
        try:
            good.append(int(data.item(i).caption.split()[2]))
        except BadItem as error:
            kinds[error.kind] = kinds.get(error.kind, 0) + 1
    if source == "arrow":
        assert good == list(range(COUNT))
    else:
        cut = "damaged shard" if source == "array_record" else "shard is cut short"
        assert kinds.keys() == {"shard is gone", cut} and kinds["shard is gone"] >= 5
        stream = batches(data, batch_size=4, image_size=20, seed=0, num_threads=0)
        for _ in range(6) if good else ():
            for image, text in zip(*map(next(stream).get, ("image", "captions")), strict=True):
                np.testing.assert_array_equal(image, layouts.pixels(int(text.split()[2])))
    # A set that is opened again has the remaining items.
    if source in ("parquet", "webdataset") and len(good) > 0:
        again = load_records(settings, None)
        assert [int(again.record(i).captions[0].split()[2]) for i in range(len(again))] == good
        assert again.skipped


@EXTRAS
def test_text_that_is_not_utf8_in_a_table(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array([b"caf\xe9", b"fine"]).cast(pa.binary())
    text = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    table = pa.table({"image": [layouts.png(0), layouts.png(1)], "text": text})
    pq.write_table(table, tmp_path / "x.parquet")
    records = load_records(config("parquet", tmp_path), None)
    assert [records.record(i).captions for i in range(2)] == [("caf\ufffd",), ("fine",)]


# --- filters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({}, "abcde"),
        ({"min_side": 1.0}, "acde"),
        ({"min_side": 2.0}, "ade"),
        ({"max_aspect": 2.0}, "abcd"),
        ({"min_caption_length": 9}, "d"),
        ({"max_caption_length": 8}, "abcde"),
        ({"max_caption_length": 1}, "abce"),
    ],
)
def test_filters(tmp_path, settings, left):
    sizes = {"a": (64, 64), "b": (31, 40), "c": (32, 32), "d": (128, 64), "e": (64, 129)}
    for name, (width, height) in sizes.items():
        (tmp_path / f"{name}.png").write_bytes(layouts.png(1, width=width, height=height))
        (tmp_path / f"{name}.txt").write_text(name if name != "d" else "d " * 3 + "d d d d d d")
    data = load_source(config("folder", tmp_path, **settings), "train", 32)
    kept = ""
    for index, name in enumerate(sizes):
        try:
            data.item(index)
            kept += name
        except FilteredItem:
            pass
    if settings == {"max_caption_length": 8}:
        left = "abce"
    assert kept == left


@pytest.mark.parametrize("score", ['"high"', "NaN", "null", None])
def test_items_without_a_score_are_left_out(tmp_path, score):
    data = b'{"caption": "a"' + (b"" if score is None else b', "score": ' + score.encode()) + b"}"
    layouts.write_tar(tmp_path / "x.tar", [("0.png", layouts.png(0)), ("0.json", data)])
    settings = {"score_field": "score", "min_score": -1.0}
    with pytest.raises(FilteredItem) as raised:
        load_source(config("webdataset", tmp_path, **settings), "train", 8).item(0)
    assert raised.value.kind == "no score"


def test_filtered_captions_are_not_drawn(tmp_path):
    layouts.write_tar(
        tmp_path / "x.tar",
        [("0.png", layouts.png(0)), ("0.json", b'{"captions": ["a", "bbbb", "cccccc", "dd"]}')],
    )
    settings = {"min_caption_length": 2, "max_caption_length": 4}
    item = load_source(config("webdataset", tmp_path, **settings), "train", 8).item(0)
    assert (item.caption, item.other_captions) == ("bbbb", ("dd",))


def test_an_empty_text_does_not_hide_the_json(tmp_path):
    texts = {"0": b"", "1": b"\xff\xfe", "2": "a \u4eac".encode("utf-16")}
    files = []
    for name, text in texts.items():
        files += [(f"{name}.png", layouts.png(0)), (f"{name}.txt", text)]
        files.append((f"{name}.json", '{"caption": "from json \u4eac"}'.encode("utf-16")))
    layouts.write_tar(tmp_path / "x.tar", files)
    records = load_records(config("webdataset", tmp_path), None)
    assert captions_of(records) == ["from json \u4eac"] * 2 + ["a \u4eac"]


def test_a_mix_of_formats(tmp_path):
    from imagen_jax.config import from_json_dict, to_json_dict

    layouts.write_img2dataset_tars(tmp_path / "tars", 10)
    write_folder(tmp_path / "folder")
    part = {"source": "folder", "path": str(tmp_path / "folder"), "weight": 3}
    mix = {"a": {"source": "webdataset", "path": str(tmp_path / "tars")}, "b": part}
    whole = from_json_dict({"data": {"source": "mix", "mix": mix}, "stages": {"base": {}}})
    assert from_json_dict(to_json_dict(whole)) == whole
    data = load_source(whole.data, "train", 20)
    assert len(data) == 10 + COUNT and data.weights == (1.0, 3.0)
    assert data.item(12).caption == layouts.caption(2)
    for wrong, message in (
        ({"source": "mix"}, "0 parts"),
        ({"source": "folder", "mix": mix}, "2 parts"),
        ({"source": "mix", "mix": {"a": {"source": "shapes"}}}, r"mix\.a\.source='shapes'"),
        ({"source": "mix", "mix": {"a": part | {"weight": 0.0}}}, "must be positive"),
    ):
        with pytest.raises(UserError, match=message):
            from_json_dict({"data": wrong, "stages": {"base": {}}})


def test_few_files_stay_open(tmp_path):
    layouts.write_img2dataset_tars(tmp_path, 60, 2)
    data = load_source(config("webdataset", tmp_path), "train", 20)
    before = len(os.listdir("/proc/self/fd"))
    for i in range(len(data)):
        data.item(i)
    assert len(os.listdir("/proc/self/fd")) == before
