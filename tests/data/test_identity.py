"""The identity of a set changes with its files, their order and sizes, and not with their place."""

import os
import shutil
from pathlib import Path

import pytest
from layouts import (
    png,
    write_img2dataset_parquet,
    write_img2dataset_tars,
)

from imagen_jax.config import CascadeConfig, DataConfig, MixConfig, StageConfig
from imagen_jax.data.buckets import load_stage_source
from imagen_jax.data.identity import describe, identify
from imagen_jax.data.open import load_source
from imagen_jax.data.source import BadItem


def write_folder(folder, count):
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:03}.png").write_bytes(png(number))
        (folder / f"{number:03}.txt").write_text(f"number {number}")


FORMATS = {
    "folder": write_folder,
    "webdataset": write_img2dataset_tars,
    "parquet": write_img2dataset_parquet,
}


# CI installs pyarrow for the slow tests.
SOURCES = ["folder", "webdataset", pytest.param("parquet", marks=pytest.mark.slow)]


@pytest.fixture(params=SOURCES)
def source(request):
    return request.param


def identity(source, path, split="train"):
    return identify(load_source(DataConfig(source=source, path=str(path)), split, 8))


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".tar", ".parquet"))


def test_it_is_of_names_sizes_and_numbers(tmp_path, source):
    FORMATS[source](tmp_path / "set", 30)
    whole = identity(source, tmp_path / "set")
    assert [one["pictures"] for one in whole] == [30] and "30 pictures (" in describe(whole)
    # A copy elsewhere, with other times.
    shutil.copytree(tmp_path / "set", tmp_path / "copy", copy_function=shutil.copyfile)
    assert identity(source, tmp_path / "copy") == whole

    found = [whole]
    # Another name.
    copy = tmp_path / "copy"
    first = files(copy)[0]
    for file in first.parent.glob(f"{first.stem}.*"):
        file.rename(file.with_stem(f"{file.stem}_x"))
    found.append(identity(source, copy))
    # One file less.
    files(copy)[1].unlink()
    found.append(identity(source, copy))
    # A longer one.
    with files(copy)[-1].open("ab") as file:
        file.write(bytes(512))
    found.append(identity(source, copy))
    assert len({str(one) for one in found}) == 4
    assert found[2][0]["pictures"] < 30


def test_both_splits_of_a_set_of_shards_have_the_identity_of_the_whole(tmp_path):
    source = "webdataset"
    FORMATS[source](tmp_path / "set", 120)
    train, held_out = (identity(source, tmp_path / "set", s) for s in ("train", "held_out"))
    assert train == held_out and train[0]["pictures"] == 120


def test_a_mix_and_buckets_have_those_of_their_sets(tmp_path):
    for name in "ab":
        write_folder(tmp_path / name, 10)
    (tmp_path / "b" / "000.png").unlink()
    mix = {n: MixConfig(source="folder", path=str(tmp_path / n)) for n in "ab"}
    data = DataConfig(source="mix", mix=mix)
    both = identity("folder", tmp_path / "a") + identity("folder", tmp_path / "b")
    assert identify(load_source(data, "train", 8)) == both

    data = DataConfig(source="folder", path=str(tmp_path / "a"), aspect_buckets=("1:1", "2:1"))
    config = CascadeConfig(data=data, stages={"base": StageConfig(resolution=64)})
    assert identify(load_stage_source(config, "base", "train")) == both[:1]


def test_drawn_pictures_have_none():
    assert identify(load_source(DataConfig(source="shapes"), "train", 8)) == []


def test_the_items_of_a_file_that_cannot_be_reached_keep_their_places(tmp_path, monkeypatch):
    write_img2dataset_tars(tmp_path / "set", 30)
    data = DataConfig(source="webdataset", path=str(tmp_path / "set"))
    whole = identity("webdataset", tmp_path / "set")
    captions = [load_source(data, "train", 8).item(i).caption for i in range(30)]
    second = files(tmp_path / "set")[1]
    # As for a stale handle of a network file system.
    second.unlink()
    os.symlink(tmp_path / "nowhere.tar", second)
    monkeypatch.setattr(Path, "resolve", lambda path: path)
    source = load_source(data, "train", 8)
    assert len(source) == 30 and identify(source) == whole
    records = source.records
    assert records.skipped == {"shards cannot be read": 1}
    assert [source.item(i).caption for i in range(20, 30)] == captions[20:]
    with pytest.raises(BadItem, match="No such file"):
        source.item(12)
    # Without its index nobody knows how many there were.
    shutil.rmtree(tmp_path / "set" / ".imagen_jax")
    changed = identity("webdataset", tmp_path / "set")
    assert changed != whole and changed[0]["pictures"] == 20
