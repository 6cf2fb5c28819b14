"""Which files belong to a split, by the layouts that other programs write."""

from pathlib import Path, PurePath

import pytest

from imagen_jax.config import DataConfig
from imagen_jax.data.formats.splits import choose_files, choose_names, split_of
from imagen_jax.errors import UserError

HASH = "a1b2c3d4e5f60718"


def choose(root, names, split="train", path=None):
    paths = sorted(root / name for name in names)
    for file in paths:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    config = DataConfig(source="parquet", path=str(path or root), split=split)
    return [str(file.relative_to(root)) for file in choose_files(config, paths, root)]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.parquet", "train"),
        ("Train_01.parquet", "train"),
        ("train0.parquet", "train"),
        (f"train-00000-of-00005-{HASH}.parquet", "train"),
        ("data/train-00000-of-00005.parquet", "train"),
        ("coco-train-00000-of-00005.arrow", "train"),
        ("my_set-validation.arrow", "validation"),
        ("default/train/0000.parquet", "train"),
        ("default/partial-train/0000.parquet", "train"),
        ("test_config/train/0000.parquet", "train"),
        ("val2017/a.parquet", "validation"),
        ("dev.parquet", "validation"),
        ("valid/a.parquet", "validation"),
        ("testing/a.parquet", "test"),
        ("data/train_sft-00000-of-00002.parquet", "train_sft"),
        ("00000.parquet", ""),
        ("part-00000-of-00002.parquet", ""),
        ("part-00000-4b1c.snappy.parquet", ""),
        ("latest/contest_devices.parquet", ""),
    ],
)
def test_names_of_splits(name, split):
    assert split_of(PurePath(name)) == split


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "test.parquet", "val.parquet"),
        ("default/train/0.parquet", "default/test/0.parquet", "default/validation/0.parquet"),
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet", f"dev-{HASH}.parquet"),
        ("train/0.parquet", "test/0.parquet", "valid/0.parquet"),
    ],
)
def test_only_the_files_of_the_split_are_read(tmp_path, names):
    assert choose(tmp_path, names) == [names[0]]
    assert choose(tmp_path, names, "test") == [names[1]]
    for word in ("validation", "val", "dev", "valid"):
        assert choose(tmp_path, names, word) == [names[2]]
    assert choose(tmp_path, names, "train+test") == sorted(names[:2])


def test_an_absent_split_is_refused_with_those_that_are_there(tmp_path):
    names = ("validation-00000-of-00001.parquet", "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"no split 'train'; it has test, validation "):
        choose(tmp_path, names)
    with pytest.raises(UserError, match=r"no split 'train'"):
        choose(tmp_path, names, "test+train")
    sft = ("train_sft-00000-of-00001.parquet", "train_gen-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"it has train_gen, train_sft "):
        choose(tmp_path, sft)
    assert choose(tmp_path, sft, "train_sft") == [sft[0]]


def test_a_set_without_splits_is_the_training_split(tmp_path):
    names = ["cats/0.parquet", "dogs/0.parquet"]
    assert choose(tmp_path, names) == names
    # A folder may be asked for by its name.
    assert choose(tmp_path, names, "dogs") == names[1:]
    with pytest.raises(UserError, match="no word for a split; split='train' reads all"):
        choose(tmp_path, names, "test")


def test_a_split_of_another_name(tmp_path):
    names = ("train-00000-of-00001.parquet", "unsupervised-00000-of-00001.parquet")
    assert choose(tmp_path, names, "unsupervised") == [names[1]]
    assert choose(tmp_path, names) == [names[0]]


def test_one_named_file_is_read_whatever_its_name(tmp_path):
    assert choose(tmp_path, ["test.parquet"], path=tmp_path / "test.parquet") == ["test.parquet"]
    with pytest.raises(UserError, match="it has test "):
        choose(tmp_path, ["test.parquet"])


def test_names_in_a_list():
    def names(split):
        config = DataConfig(source="arrow", path=str(Path("x")), split=split)
        return choose_names(config, ["train", "validation", "train_sft"])

    assert names("train") == ["train"] and names("val") == ["validation"]
    assert names("train_sft+dev+val") == ["train_sft", "validation"]
    with pytest.raises(UserError, match="no split 'test'; it has train, validation, train_sft "):
        names("test")
