import json

import numpy as np
import pytest
from PIL import Image

from imagen_jax.config import DataConfig
from imagen_jax.data.formats.folder import FolderRecords
from imagen_jax.data.open import load_source
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError


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
    source = FolderRecords(str(tmp_path), "train")
    captions = [source.record(i).captions[0] for i in range(len(source))]
    assert captions == ["first", "its own caption", "third", "second"]
    assert source.skipped == {
        "lines whose picture is missing": 1,
        "lines of metadata.jsonl without file_name and text": 3,
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
    small = [FolderRecords(str(tmp_path), split) for split in ("train", "held_out")]
    assert [len(s) for s in small] == [99, 99]
    for i in range(99, 200):
        write(tmp_path / f"{i}.png", caption=b"%d" % i)
    train, held_out = (FolderRecords(str(tmp_path), split) for split in ("train", "held_out"))
    assert len(train) + len(held_out) == 200
    assert len(FolderRecords(str(tmp_path), None)) == 200
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
        FolderRecords("" if setup == "unset" else str(path), "train")


def test_unknown_source_and_split():
    with pytest.raises(UserError, match="shapes, emoji, icons, folder"):
        load_source(DataConfig(source="imagenet"), "train", 16)
    with pytest.raises(UserError, match="held_out"):
        load_source(DataConfig(), "validation", 16)
    assert np.asarray(load_source(DataConfig(), "train", 16).item(0).image).shape == (16, 16, 3)
