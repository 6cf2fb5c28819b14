"""`source="icons"`, as it is and as a store."""

import json

import numpy as np
import pytest
from icon_files import write_styles

from imagen_jax.cli import prepare_data
from imagen_jax.config import DataConfig
from imagen_jax.data.builtin.icons.key import IconKey
from imagen_jax.data.check import examine
from imagen_jax.data.open import load_source
from imagen_jax.errors import UserError

SIDES = ("train", "held_out")


@pytest.fixture(scope="module")
def icons(tmp_path_factory):
    names = [f"thing {i}" for i in range(60)]
    styles = {style: names for style in ("noto", "twemoji", "fxemoji", "mine")}
    return write_styles(tmp_path_factory.mktemp("icons"), styles)


def sides(source, path, size):
    return [load_source(DataConfig(source=source, path=str(path)), split, size) for split in SIDES]


def keys(source):
    return [source.records.record(i).key for i in range(len(source))]


def test_items_are_drawn_at_the_size_of_the_stage(icons):
    train, held_out = sides("icons", icons, 24)
    assert not train.endless and len(train) + len(held_out) == 240 and len(held_out) > 3
    item = train.item(0)
    assert item.image.shape == (24, 24, 3) and item.image.dtype == np.uint8
    assert item.image.min() < 100 and item.image.max() == 255
    key = IconKey.parse(keys(train)[0])
    assert item.caption == f"a {key.concept}, {key.style} style"
    assert key.concept in item.other_captions


def test_a_store_has_the_same_sides_and_pictures(icons, tmp_path, capsys):
    out = tmp_path / "store"
    flags = ["--config=tiny", "--config.data.source=icons", f"--config.data.path={icons}"]
    flags.append(f"--out={out}")
    assert prepare_data.main([*flags, "--image_size=32", "--shard_size=50"]) == 0
    drawn, stored = sides("icons", icons, 32), sides("array_record", out, 32)
    assert f"{len(stored[1])} held out" in capsys.readouterr().out
    for one, other in zip(drawn, stored, strict=True):
        assert keys(one) == keys(other)
        for i in range(len(one)):
            np.testing.assert_array_equal(one.item(i).image, other.item(i).image)
            assert one.item(i).other_captions == other.item(i).other_captions
    assert {IconKey.parse(key).group for key in keys(stored[0])} == {"seen"}
    meta = json.loads((out / "manifest.json").read_text())["meta"]
    assert sorted(meta["provenance"]) == ["fxemoji", "mine", "noto", "twemoji"]
    assert meta["provenance"]["mine"]["license"] == "Apache-2.0"
    # Another size is another store.
    assert prepare_data.main([*flags, "--image_size=64"]) == 2
    assert "image_size was 32 and is now 64" in capsys.readouterr().err


def test_check_data_reads_them(icons):
    found = examine(sides("icons", icons, 16)[0])
    assert found.good == found.num_examined == found.total and not found.bad
    assert set(found.widths) == {16} and set(found.captions_per_item) == {5}


def test_wrong_settings_are_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_source(DataConfig(source="icons", path=str(tmp_path / "none")), "train", 16)
    with pytest.raises(UserError, match="all are square"):
        DataConfig(source="icons", path=str(tmp_path), aspect_buckets=("1:1", "3:2"))
