import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from imagen_jax.config import DataConfig
from imagen_jax.data import images
from imagen_jax.data.check import examine
from imagen_jax.data.formats.folder import FolderRecords
from imagen_jax.data.open import load_source
from imagen_jax.data.source import BadItem, FilteredItem
from imagen_jax.errors import UserError


def records_of(path, split):
    return FolderRecords(DataConfig(source="folder", path=str(path)), split)


def write(path, colour=(200, 30, 30), caption=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_bytes(caption)


def test_text_files_beside_pictures(tmp_path):
    write(tmp_path / "b.png", (0, 0, 255), b"\xef\xbb\xbfa blue  thing\n")
    write(tmp_path / "a.JPG", (255, 0, 0), b"a red thing")
    write(tmp_path / "deeper" / "c.bmp", (0, 255, 0), "caf\xe9".encode("latin-1"))
    write(tmp_path / "none.png")
    write(tmp_path / "empty.png", caption=b" \n")
    (tmp_path / "notes.md").write_text("not a picture")
    source = load_source(DataConfig(source="folder", path=str(tmp_path)), "train", 16)
    items = [source.item(i) for i in range(len(source))]
    assert [item.caption for item in items] == ["a red thing", "a blue thing", "caf\ufffd"]
    assert all(item.image.shape == (16, 16, 3) for item in items)
    assert tuple(items[1].image[8, 8]) == (0, 0, 255)
    assert source.records.skipped == {
        "pictures without a caption": 1,
        "pictures with an empty caption": 1,
    }
    assert not source.endless


def test_metadata(tmp_path):
    for name in ("one.png", "two.png", "unlisted.png", "sub/three.png"):
        write(tmp_path / name)
    write(tmp_path / "own.png", caption=b"its own caption")
    lines = [
        json.dumps({"file_name": "one.png", "text": "first"}),
        "",
        json.dumps({"file_name": "./two.png", "text": "second"}),
        json.dumps({"file_name": "sub/three.png", "text": "third"}),
        json.dumps({"file_name": "gone.png", "text": "fourth"}),
        json.dumps({"file_name": "one.png"}),
        json.dumps(["no object"]),
        "{cut",
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    source = records_of(tmp_path, "train")
    captions = [source.record(i).captions[0] for i in range(len(source))]
    assert captions == ["first", "its own caption", "third", "second"]
    assert source.skipped == {
        "lines whose picture is missing": 1,
        "lines of metadata.jsonl without file_name and caption": 3,
        "pictures without a caption": 1,
    }


def test_unreadable_picture_is_bad_when_asked_for(tmp_path):
    write(tmp_path / "a.png", caption=b"cut")
    write(tmp_path / "b.png", caption=b"removed")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    source = load_source(DataConfig(source="folder", path=str(tmp_path)), "train", 16)
    (tmp_path / "b.png").unlink()
    for index, (name, kind) in enumerate((("a", "truncated picture"), ("b", "file is gone"))):
        with pytest.raises(BadItem, match=f"{name}.png") as raised:
            source.item(index)
        assert raised.value.kind == kind


def test_splits(tmp_path):
    for i in range(99):
        write(tmp_path / f"{i}.png", caption=b"x")
    small = [records_of(tmp_path, split) for split in ("train", "held_out")]
    assert [len(s) for s in small] == [99, 99]
    for i in range(99, 200):
        write(tmp_path / f"{i}.png", caption=b"%d" % i)
    train, held_out = (records_of(tmp_path, split) for split in ("train", "held_out"))
    assert len(train) + len(held_out) == 200
    assert len(records_of(tmp_path, None)) == 200
    assert 2 <= len(held_out) <= 20  # 10 expected, 2.6 standard deviations either way
    names = [{file for file, _ in s._items} for s in (train, held_out)]
    assert not names[0] & names[1]


@pytest.mark.parametrize("setup", ["unset", "missing", "file", "empty", "uncaptioned"])
def test_errors_name_the_remedy(tmp_path, setup):
    path = tmp_path / "pictures"
    expected = "folder"
    if setup == "missing":
        expected = "does not exist"
    elif setup == "file":
        path.write_text("x")
        expected = "is not a folder"
    elif setup in ("empty", "uncaptioned"):
        path.mkdir()
        expected = "no picture at all.*metadata.jsonl"
        if setup == "uncaptioned":
            write(path / "a.png")
            expected = "1 pictures without a caption.*a picture.txt"
    with pytest.raises(UserError, match=expected):
        records_of("" if setup == "unset" else path, "train")


def test_unknown_source_and_split():
    with pytest.raises(UserError, match="shapes, emoji, icons, folder"):
        load_source(DataConfig(source="imagenet"), "train", 16)
    with pytest.raises(UserError, match="held_out"):
        load_source(DataConfig(), "validation", 16)
    assert np.asarray(load_source(DataConfig(), "train", 16).item(0).image).shape == (16, 16, 3)


def read(records) -> dict[str, tuple[str, ...]]:
    return {r.key: r.captions for r in (records.record(i) for i in range(len(records)))}


def test_links_to_folders_are_followed_once(tmp_path):
    root = tmp_path / "set"
    write(root / "a" / "one.png", caption=b"one")
    write(tmp_path / "elsewhere" / "two.png", caption=b"two")
    write(tmp_path / "elsewhere" / "deeper" / "three.png", caption=b"three")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(root / "a")  # read as a/one.png already
    (root / "a" / "up").symlink_to(root)
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere" / "self")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    found = read(records_of(root, None))
    assert list(found) == ["a/one.png", "link/deeper/three.png", "link/two.png"]


def test_hidden_files_and_twins_are_left_out(tmp_path):
    write(tmp_path / "a.png", caption=b"a")
    write(tmp_path / "a.dir" / "b.png", caption=b"b")
    for name in (".ipynb_checkpoints/a.png", "._a.png", "__MACOSX/a.png", "@eaDir/deep/a.png"):
        write(tmp_path / name, caption=b"no")
    # A folder that is itself hidden may be named.
    assert len(records_of(tmp_path / ".ipynb_checkpoints", None)) == 1
    records = records_of(tmp_path, None)
    assert read(records) == {"a.png": ("a",), "a.dir/b.png": ("b",)}
    reason = "hidden pictures (a dot in front of the name, or in a folder such as __MACOSX)"
    assert records.skipped == {reason: 4}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_encodings_of_captions(tmp_path, encoding):
    words = "a caf\xe9 in \u4eac\u90fd \U0001f34e"
    write(tmp_path / "a.png", caption=words.encode(encoding))
    write(tmp_path / "b.png")
    (tmp_path / "b.json").write_bytes(json.dumps({"text": words}).encode(encoding))
    write(tmp_path / "c.png")
    line = json.dumps({"file_name": "c.png", "text": words}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes((line + "\n").encode(encoding))
    assert set(read(records_of(tmp_path, None)).values()) == {(words,)}


def test_characters_that_cannot_be_read_are_warned_of_once(tmp_path, caplog):
    write(tmp_path / "a.png", caption=b"a\0b")
    write(tmp_path / "b.png", caption=b"caf\xe9")
    write(tmp_path / "c.png")
    (tmp_path / "c.json").write_text('{"caption": "half \\ud800 of a pair"}')
    source = load_source(DataConfig(source="folder", path=str(tmp_path)), "train", 16)
    captions = [source.item(i).caption for i in (0, 1, 2, 0)]
    assert captions[:3] == ["a\ufffdb", "caf\ufffd", "half \ufffd of a pair"]
    assert caplog.text.count("cannot be read") == 1 and "a.png" in caplog.text
    assert examine(source).unreadable_captions == 3


def test_texts_that_cannot_be_read(tmp_path):
    for name in "abcde":
        write(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "b.txt").mkdir()
    os.mkfifo(tmp_path / "c.txt")  # reading it would never end
    (tmp_path / "d.txt").write_text("good")
    (tmp_path / "e.json").write_text("[" * 100_000)
    os.mkfifo(tmp_path / "f.png")
    records = records_of(tmp_path, None)
    assert read(records) == {"d.png": ("good",)}
    assert records.skipped == {
        "text files that cannot be read": 1,
        "damaged .json files": 1,
        "pictures without a caption": 4,
    }


def test_captions_and_scores_in_fields(tmp_path):
    for name in "abcd":
        write(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("text of a")
    (tmp_path / "a.json").write_text('{"alt": ["one", "two"], "caption": "c", "p": {"score": 5}}')
    (tmp_path / "b.txt").write_text(" ")
    (tmp_path / "b.json").write_text(
        '{"caption": "an empty text hides nothing", "p": {"score": 2}}'
    )
    lines = [
        {"file_name": "c.png", "caption": "first", "p": {"score": 7}},
        {"file_name": "c.png", "text": "second", "alt": "third"},
        {"file_name": "c.png", "caption": "first"},
        {"file_name": "d.png", "caption": ["x", "y"]},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def config(**fields):
        return DataConfig(source="folder", path=str(tmp_path), **fields)

    assert read(FolderRecords(config(), None)) == {
        "a.png": ("text of a",),
        "b.png": ("an empty text hides nothing",),
        "c.png": ("first", "second"),
        "d.png": ("x", "y"),
    }
    fields = {"caption_fields": ("alt", "txt")}
    found = read(FolderRecords(config(**fields), None))
    assert found == {"a.png": ("text of a", "one", "two"), "c.png": ("third",)}
    scored = FolderRecords(config(score_field="p/score"), None)
    assert [scored.record(i).score for i in range(4)] == [5, 2, 7, None]
    source = load_source(config(score_field="p/score", min_score=3.0), "train", 16)
    assert source.item(0).caption == "text of a"
    for index, kind in ((1, "score too low"), (3, "no score")):
        with pytest.raises(FilteredItem) as raised:
            source.item(index)
        assert raised.value.kind == kind


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "folder", "split": "val"}, "split='val' does nothing with source='folder'"),
        ({"source": "folder", "image_field": "png"}, "image_field='png' does nothing"),
        ({"source": "array_record", "caption_fields": ("alt",)}, "caption_fields=.*array_record"),
        ({"source": "shapes", "score_field": "p"}, "score_field='p' does nothing.*shapes"),
        ({"source": "folder", "min_score": 5.0}, "min_score=5.0 does nothing without score_field"),
    ],
)
def test_settings_that_do_nothing_are_refused(tmp_path, settings, message):
    write(tmp_path / "a.png", caption=b"a")
    with pytest.raises(UserError, match=message):
        load_source(DataConfig(path=str(tmp_path), **settings), "train", 16)


def test_pictures_of_other_formats_are_counted_by_ending(tmp_path):
    write(tmp_path / "a.png", caption=b"a")
    for name in ("b.jp2", "c.JP2", "d.heic", "e.xyz", "f", "notes.md", "table.csv"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("c.txt", "e.txt", "f.txt", "notes.txt"):
        (tmp_path / name).write_text("a text")
    (tmp_path / "notes.txt").unlink()
    assert records_of(tmp_path, None).skipped == {
        "pictures ending in .jp2 are not read: convert them to JPEG or PNG": 2,
        "pictures ending in .heic are not read: pip install 'imagen-jax[heif]' to read them": 1,
        "files with a text beside them, ending in .xyz, are not read": 1,
        "files with a text beside them, ending in nothing, are not read": 1,
    }


@pytest.fixture(autouse=True)
def _no_plugin(monkeypatch):
    """Whether HEIC is read does not depend on what is installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images._formats.cache_clear()
    yield
    images._formats.cache_clear()


def test_the_limit_of_pixels_is_a_setting(tmp_path):
    write(tmp_path / "a.png", caption=b"a")  # 20 x 20
    settings = {"source": "folder", "path": str(tmp_path)}
    assert load_source(DataConfig(**settings, max_pixels=400), "train", 16).item(0).caption == "a"
    with pytest.raises(BadItem, match=r"a\.png: 20x20 pixels.*max_pixels=399"):
        load_source(DataConfig(**settings, max_pixels=399), "train", 16).item(0)
    for value in (0, 200_000_000):
        with pytest.raises(UserError, match=f"max_pixels={value}"):
            DataConfig(**settings, max_pixels=value)
