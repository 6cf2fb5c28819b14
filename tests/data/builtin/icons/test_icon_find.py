import json

import numpy as np
import pytest
from icon_files import CIRCLE, iconify, write_package
from PIL import Image

from imagen_jax.data.builtin.icons.find import load_sets
from imagen_jax.data.builtin.icons.picture_folder import read_picture_folder
from imagen_jax.errors import UserError


def write_picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)


def names(path):
    return [found.name for found in load_sets(str(path))]


def test_sets_of_all_kinds_below_a_folder(tmp_path):
    write_package(tmp_path / "unpacked", "noto", {"a": CIRCLE})
    write_package(tmp_path / "@iconify-json" / "twemoji", "twemoji", {"a": CIRCLE})
    (tmp_path / "mdi.json").write_text(json.dumps(iconify("mdi", {"a": CIRCLE})))
    write_picture(tmp_path / "photos" / "below" / "apple.png")
    (tmp_path / "@iconify" / "types").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("of mine")
    (tmp_path / ".package-lock.json").write_text("{}")
    assert names(tmp_path) == ["mdi", "noto", "photos", "twemoji"]


def test_one_set(tmp_path):
    folder = write_package(tmp_path / "noto", "noto", {"a": CIRCLE})
    (tmp_path / "mdi.json").write_text(json.dumps(iconify("mdi", {"a": CIRCLE})))
    write_picture(tmp_path / "photos" / "apple.png")
    assert names(folder) == ["noto"]
    assert names(tmp_path / "mdi.json") == ["mdi"]
    assert names(tmp_path / "photos") == ["photos"]


def test_a_folder_of_pictures(tmp_path):
    for name in (
        "1f353.webp",
        "1F1EB-1f1f7.png",
        "face.png",
        "b2b.png",
        "red apple.jpg",
        "b/face.png",
    ):
        write_picture(tmp_path / name)
    write_picture(tmp_path / "1f3f4-e0067_e0062_e0065_e006e_e0067.png")  # without its last tag
    write_picture(tmp_path / "23-fe0f-20e3.png")
    (tmp_path / "readme.md").write_text("...")
    manifest = {"name": "@me/my-icons", "version": "2.0.0", "license": "MIT", "author": "Me"}
    (tmp_path / "package.json").write_text(json.dumps(manifest))
    found = read_picture_folder(tmp_path)
    assert {icon.name: icon.sequence for icon in found.icons} == {
        "1f353": "🍓",
        "1F1EB-1f1f7": "🇫🇷",
        "1f3f4-e0067_e0062_e0065_e006e_e0067": "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "23-fe0f-20e3": "#⃣",
        "face": "",
        "b2b": "",
        "red apple": "",
    }
    assert found.name == "my-icons" and found.skipped == {"pictures of one name": 1}
    assert (found.origin.license, found.origin.author) == ("MIT", "Me")
    assert found.origin.package == "@me/my-icons@2.0.0"


def test_a_path_without_icons_is_an_error(tmp_path):
    with pytest.raises(UserError, match="path is empty"):
        load_sets("")
    with pytest.raises(UserError, match=r"no/such does not exist.*fetch_icons"):
        load_sets("no/such")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no icons"):
        load_sets(str(tmp_path))
    write_package(tmp_path / "noto", "noto", {"a": {"body": CIRCLE, "hidden": True}})
    with pytest.raises(UserError, match="has no icons"):
        load_sets(str(tmp_path))


def test_a_set_that_is_there_twice_is_an_error(tmp_path):
    for folder in ("noto-1", "noto-2"):
        write_package(tmp_path / folder, "noto", {"a": CIRCLE})
    with pytest.raises(UserError, match=r"two icon sets of the name 'noto'.*noto-1.*noto-2"):
        load_sets(str(tmp_path))


def test_a_file_of_something_else_is_an_error(tmp_path):
    write_package(tmp_path / "noto", "noto", {"a": CIRCLE})
    (tmp_path / "tsconfig.json").write_text("{}")
    with pytest.raises(UserError, match=r"tsconfig.json is not IconifyJSON"):
        load_sets(str(tmp_path))
