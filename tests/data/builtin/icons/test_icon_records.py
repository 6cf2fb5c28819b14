import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from icon_files import CIRCLE, body, write_package, write_styles
from PIL import Image

from imagen_jax.data.builtin.icons.key import IconKey
from imagen_jax.data.builtin.icons.records import IconRecords
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError


def keys(records):
    return [str(records.key(i)) for i in range(len(records))]


def records(path, split=None, size=32, **options):
    return IconRecords(str(path), split, size, **options)


@pytest.fixture
def noto(tmp_path):
    return write_package(
        tmp_path / "noto",
        "noto",
        {
            "strawberry": CIRCLE,
            "thumbs-up": body(1),
            "thumbs-up-dark-skin-tone": body(2),
            "flag-spain": body(3),
            "flag-ceuta-and-melilla": body(3),
            "old": {"body": body(4), "hidden": True},
            "broken": "<rect",
        },
        categories={"Food & Drink": ["strawberry"]},
    )


def test_a_record(noto):
    found = records(noto)
    record = found.record(2)
    assert record.key == "seen/noto/strawberry/strawberry"
    assert record.captions[0] == "a strawberry, noto style" and record.captions == found.captions(2)
    with Image.open(io.BytesIO(record.image)) as image:
        assert image.size == (32, 32) and image.format == "PNG"
        assert image.convert("RGB").getpixel((16, 16)) == (255, 0, 0)


def test_what_is_left_out_is_counted(noto):
    found = records(noto)
    names = [found.key(i).name for i in range(len(found))]
    assert names == ["broken", "flag-spain", "strawberry", "thumbs-up"]
    assert found.skipped == {
        "hidden icons": 1,
        "skin-tone variants": 1,
        "icons with the drawing of another": 1,
    }
    toned = records(noto, keep_skin_tones=True)
    assert len(toned) == 5 and "skin-tone variants" not in toned.skipped


def test_a_damaged_drawing_is_named_by_its_key(noto):
    with pytest.raises(BadItem, match="seen/noto/broken/broken: resvg") as caught:
        records(noto).record(0)
    assert caught.value.kind == "damaged drawing"


def test_provenance_is_that_of_each_style(noto):
    assert records(noto).provenance == {
        "noto": {
            "title": "Noto",
            "author": "A. Designer",
            "url": "https://example.com",
            "license": "Apache-2.0",
            "license_url": "https://example.com/license",
            "package": "@iconify-json/noto@1.2.3",
        }
    }


def test_a_set_without_a_licence_is_warned_of(tmp_path, caplog):
    records(write_package(tmp_path / "a", "mine", {"a": CIRCLE}, info={}))
    assert "the icon set mine (mine) names no licence" in caplog.text


def test_two_sets_of_one_style_are_an_error(tmp_path):
    for prefix in ("noto-emoji", "noto-icons"):
        write_package(tmp_path / prefix, prefix, {"a": CIRCLE})
    with pytest.raises(UserError, match=r"noto-emoji' and 'noto-icons' have one style, 'noto'"):
        records(tmp_path)


def test_a_small_set_is_the_same_on_both_sides(noto):
    assert keys(records(noto, "train")) == keys(records(noto, "held_out")) == keys(records(noto))
    assert records(noto).num_held_out == 0


def test_sides_share_nothing_and_make_the_whole(tmp_path):
    names = [f"thing {i}" for i in range(140)]
    path = write_styles(tmp_path, {style: names for style in ("a", "b", "c", "d")})
    train, held_out, whole = (keys(records(path, split)) for split in ("train", "held_out", None))
    assert whole == train + held_out and not set(train) & set(held_out)
    assert 0.02 < len(held_out) / len(whole) < 0.15
    assert {IconKey.parse(key).group for key in held_out} == {"unseen pair", "unseen concept"}


def test_keys():
    key = IconKey("unseen pair", "fluent 3d", "strawberry", "below/1f353")
    assert str(key) == "unseen pair/fluent 3d/strawberry/below/1f353"
    assert IconKey.parse(str(key)) == key
    for text in ("17", "a/b/c/d", "seen/noto/strawberry"):
        with pytest.raises(ValueError, match="not the key of an icon"):
            IconKey.parse(text)


def test_records_go_to_other_processes(noto):
    found = records(noto)
    assert pickle.loads(pickle.dumps(found)).record(1) == found.record(1)


def test_stamps_change_with_the_file_of_an_icon(tmp_path):
    write_package(tmp_path / "noto", "noto", {"a": CIRCLE, "b": body(1)})
    for name in ("c", "d"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / f"{name}.png")
    found = records(tmp_path)
    names = [found.key(i).name for i in range(len(found))]
    before = found.stamps()
    assert before.dtype == np.uint64 and len(set(before.tolist())) == 4
    np.testing.assert_array_equal(records(tmp_path).stamps(), before)
    Image.new("RGB", (5, 5)).save(tmp_path / "photos" / "d.png")
    assert [n for n, same in zip(names, found.stamps() == before, strict=True) if not same] == ["d"]
    info = tmp_path / "noto" / "info.json"
    info.write_text(json.dumps({"license": "none"}))
    changed = found.stamps() != before
    assert {n for n, other in zip(names, changed, strict=True) if other} == {"a", "b", "d"}


def test_the_library_that_draws_is_asked_for(noto):
    code = (
        "import sys; sys.modules['resvg_py'] = None\n"
        "from imagen_jax.data.builtin.icons.records import IconRecords\n"
        f"IconRecords({str(noto)!r}, None, 16)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: source 'icons' needs the library resvg-py: pip install" in done.stderr
