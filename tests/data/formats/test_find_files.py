"""Paths and file names of unusual kinds, and places where no index can be written."""

import os
import unicodedata

import layouts
import pytest

from imagen_jax.config import DataConfig
from imagen_jax.data.check import examine
from imagen_jax.data.check_page import Rates, summary
from imagen_jax.data.formats import files
from imagen_jax.data.open import load_records, load_source
from imagen_jax.data.prepare import prepare
from imagen_jax.errors import UserError


def names(path):
    found = files.find_files(str(path), ".tar", "tars")
    return [file.name for file in found]


def test_names_that_exist_are_no_patterns(tmp_path):
    for folder in ("set [b]", "set b", "set *"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder[4:]}.tar").touch()
    (tmp_path / "set b" / "c.tar").touch()
    assert names(tmp_path / "set [b]") == names(tmp_path / "set [b]" / "[b].tar") == ["[b].tar"]
    assert names(tmp_path / "set [b]" / "*.tar") == ["[b].tar"]
    assert names(tmp_path / "set *" / "?.tar") == ["*.tar"]
    # What does not exist is a pattern.
    assert names(tmp_path / "set ?" / "[bc].tar") == ["b.tar", "c.tar"]
    assert files.folder_of(str(tmp_path / "set ?" / "[bc].tar")) == tmp_path
    assert files.folder_of(str(tmp_path / "set [b]" / "*.tar")) == tmp_path / "set [b]"
    with pytest.raises(UserError, match="does not exist"):
        names(tmp_path / "none" / "*.tar")


def test_relative_patterns(tmp_path, monkeypatch):
    (tmp_path / "a.tar").touch()
    monkeypatch.chdir(tmp_path)
    assert names("*.tar") == names("./a.tar") == names(".") == ["a.tar"]


def test_hidden_folders_are_left_out(tmp_path):
    for folder in (".ipynb_checkpoints", "kept"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.tar").touch()
    (tmp_path / "._kept.tar").touch()
    assert names(tmp_path) == ["kept.tar"]


def unusual_name() -> str:
    return os.fsdecode(b"caf\xe9")


def test_names_that_are_not_utf8(tmp_path, capsys):
    """A hundred pictures, since smaller folders are not split by the hashes of their names."""
    folder = tmp_path / unusual_name()
    folder.mkdir()
    try:
        for i in range(100):
            (folder / f"{i}{unusual_name()}.png").write_bytes(layouts.png(i) if i else b"broken")
            (folder / f"{i}{unusual_name()}.txt").write_text("words")
    except OSError:
        pytest.skip("the file system takes only names in UTF-8")
    config = DataConfig(source="folder", path=str(tmp_path))
    sides = [load_source(config, side, 8) for side in ("train", "held_out")]
    assert sum(map(len, sides)) == 100 and len(sides[1])
    # The name of the broken picture is printed, and names are stored.
    for side in sides:
        print(summary(examine(side), Rates(loader=1.0, cores=1)))
    assert "caf\\udce9" in capsys.readouterr().out
    prepare(config, str(tmp_path / "store"), image_size=8, num_threads=1)
    store = DataConfig(source="array_record", path=str(tmp_path / "store"))
    assert len(load_records(store, None)) == 99


def test_tars_whose_names_are_not_utf8(tmp_path):
    layouts.write_img2dataset_tars(tmp_path / unusual_name(), 2)
    records = load_records(DataConfig(source="webdataset", path=str(tmp_path)), None)
    assert [records.record(i).captions for i in range(2)] == [
        (layouts.caption(0),),
        (layouts.caption(1),),
    ]


@pytest.mark.parametrize("has_home", [False, True])
def test_no_place_for_the_index(tmp_path, monkeypatch, has_home):
    layouts.write_img2dataset_tars(tmp_path / "set", 2)
    # Files in the place of folders stand for a set and a home that even root cannot write to.
    (tmp_path / "set" / ".imagen_jax").touch()
    (tmp_path / "home").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if not has_home:
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        monkeypatch.chdir(tmp_path / "set")
    config = DataConfig(source="webdataset", path=str(tmp_path / "set"))
    with pytest.raises(UserError, match=r"cannot be written to .*XDG_CACHE_HOME"):
        load_records(config, None)
    assert not (tmp_path / "set" / "~").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(load_records(config, None)) == 2


def test_accents_of_picture_and_text_may_be_composed_otherwise(tmp_path):
    one, two = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    for picture, text in ((one, two), (two, one)):
        place = tmp_path / str(len(picture))
        place.mkdir()
        (place / f"{picture}.png").write_bytes(layouts.png(0))
        (place / f"{text}.txt").write_text("beside")
        listed = tmp_path / f"listed {len(picture)}"
        listed.mkdir()
        (listed / f"{picture}.png").write_bytes(layouts.png(0))
        line = f'{{"file_name": "{text}.png", "text": "listed"}}'
        (listed / "metadata.jsonl").write_text(line, encoding="utf-8")
        for folder, caption in ((place, "beside"), (listed, "listed")):
            records = load_records(DataConfig(source="folder", path=str(folder)), None)
            assert records.record(0).captions == (caption,) and not records.skipped
        members = [(f"{picture}.png", layouts.png(0)), (f"{text}.txt", b"in a tar")]
        layouts.write_tar(tmp_path / f"tar {len(picture)}" / "0.tar", members)
        tars = DataConfig(source="webdataset", path=str(tmp_path / f"tar {len(picture)}"))
        assert load_records(tars, None).record(0).captions == ("in a tar",)
