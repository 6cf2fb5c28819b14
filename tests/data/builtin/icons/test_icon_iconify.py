import json

import pytest
from icon_files import CIRCLE, LICENSE, iconify, write_package

from imagen_jax.data.builtin.icons.icon_set import Drawing, Origin
from imagen_jax.data.builtin.icons.iconify import read_iconify
from imagen_jax.errors import UserError


def write(tmp_path, values):
    file = tmp_path / "set.json"
    file.write_text(json.dumps(values))
    return file


def icons(tmp_path, values):
    return {icon.name: icon for icon in read_iconify(write(tmp_path, values)).icons}


def test_a_package(tmp_path):
    found = read_iconify(
        write_package(
            tmp_path / "noto",
            "noto",
            {"strawberry": CIRCLE, "old": {"body": CIRCLE, "hidden": True}},
            categories={"Food & Drink": ["strawberry"]},
            chars={"1f353": "strawberry"},
            width=128,
            height=64,
        )
    )
    (icon,) = found.icons
    assert (icon.name, icon.sequence, icon.category) == ("strawberry", "🍓", "Food & Drink")
    assert icon.picture == Drawing(CIRCLE, 0, 0, 128, 64)
    assert found.name == "noto" and found.is_emoji
    assert found.skipped == {"hidden icons": 1}
    assert found.origin == Origin(
        title="Noto",
        author="A. Designer",
        url="https://example.com",
        license="Apache-2.0",
        license_url="https://example.com/license",
        package="@iconify-json/noto@1.2.3",
    )
    assert [file.name for file in found.files] == [
        "icons.json",
        "info.json",
        "metadata.json",
        "chars.json",
        "package.json",
    ]


def test_a_single_file_holds_the_same(tmp_path):
    values = iconify(
        "mdi",
        {"heart": CIRCLE},
        info={"name": "Material", "license": {"title": "My own"}},
        categories={"Shapes": ["heart"]},
        chars={"2764-fe0f": "heart"},
    )
    found = read_iconify(write(tmp_path, values))
    assert found.icons[0].sequence == "❤" and found.icons[0].category == "Shapes"
    assert found.origin == Origin(title="Material", license="My own")
    assert not found.is_emoji


def test_sides_are_those_of_the_icon_else_of_the_file_else_16(tmp_path):
    given = {"a": {"body": CIRCLE, "left": -2, "width": 8.5}, "b": CIRCLE}
    of_file = icons(tmp_path, iconify("x", given, top=1, width=32, height=24))
    assert of_file["a"].picture == Drawing(CIRCLE, -2, 1, 8.5, 24)
    assert of_file["b"].picture == Drawing(CIRCLE, 0, 1, 32, 24)
    assert icons(tmp_path, iconify("x", given))["b"].picture == Drawing(CIRCLE, 0, 0, 16, 16)


def test_an_alias_that_only_renames_is_another_name(tmp_path):
    aliases = {
        "adult": {"parent": "person"},
        "human": {"parent": "adult"},
        "former": {"parent": "gone"},
    }
    given = {"person": CIRCLE, "gone": {"body": CIRCLE, "hidden": True}}
    found = icons(tmp_path, iconify("x", given, aliases=aliases))
    assert list(found) == ["person"]
    assert found["person"].other_names == ("adult", "human")


def test_an_alias_that_turns_or_flips_is_an_icon(tmp_path):
    given = {"left": {"body": CIRCLE, "rotate": 3, "hFlip": True}}
    aliases = {
        "right": {"parent": "left", "hFlip": True},
        "up": {"parent": "right", "rotate": 2, "vFlip": True},
        "top": {"parent": "up"},
        "half": {"parent": "left", "width": 4},
    }
    found = icons(tmp_path, iconify("x", given, aliases=aliases))
    assert sorted(found) == ["half", "left", "right", "up"]
    assert found["left"].picture == Drawing(CIRCLE, 0, 0, 16, 16, 3, True, False)
    assert found["right"].picture == Drawing(CIRCLE, 0, 0, 16, 16, 3, False, False)
    assert found["up"].picture == Drawing(CIRCLE, 0, 0, 16, 16, 1, False, True)
    assert found["half"].picture == Drawing(CIRCLE, 0, 0, 4, 16, 3, True, False)
    assert found["up"].other_names == ("top",)


def test_broken_icons_are_counted_by_kind(tmp_path):
    given = {
        "good": {"body": CIRCLE},
        "no body": {"width": 3},
        "empty": {"body": " "},
        "number": {"body": 3},
        "nothing": None,
        "text": {"body": CIRCLE, "width": "wide"},
        "flat": {"body": CIRCLE, "height": 0},
        "endless": {"body": CIRCLE, "height": float("inf")},
    }
    found = read_iconify(write(tmp_path, {"prefix": "x", "icons": given}))
    assert [icon.name for icon in found.icons] == ["good"]
    assert found.skipped == {
        "icons without a body": 4,
        "icons whose view box has no size": 3,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not IconifyJSON"),
        ('{"name": "a package", "icons": {}}', "is not IconifyJSON"),
        ('{"prefix": "x", "icons": []}', "is not IconifyJSON"),
        (
            '{"prefix": "x", "icons": {}, "aliases": {"a": {"parent": "b"}}}',
            "parent of the alias 'a' is 'b'",
        ),
        ('{"prefix": "x", "icons": {}, "aliases": {"a": {}}}', "parent of the alias 'a' is None"),
        (
            '{"prefix": "x", "icons": {}, "aliases": {"a": {"parent": "b"}, "b": {"parent": "a"}}}',
            "is no icon",
        ),
        (
            '{"prefix": "x", "icons": {}, "aliases": {"a": {"parent": ["b"]}}}',
            r"parent of the alias 'a' is \['b'\]",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, message):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_iconify(tmp_path / "set.json")
    assert "set.json" in str(caught.value)


def test_a_damaged_file_beside_the_icons_is_named(tmp_path):
    folder = write_package(tmp_path / "noto", "noto", {"a": CIRCLE}, info={"license": LICENSE})
    (folder / "info.json").write_text("{")
    with pytest.raises(UserError, match=r"info.json is not JSON"):
        read_iconify(folder)
