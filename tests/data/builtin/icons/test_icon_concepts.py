import collections
from pathlib import Path

import pytest

from imagen_jax.data.builtin.icons.concepts import find_concepts
from imagen_jax.data.builtin.icons.emoji_names import parse_code_points
from imagen_jax.data.builtin.icons.icon_set import Drawing, Icon, IconSet, Origin


def icon_set(*icons, is_emoji=True):
    """A set of icons, each given by its name or as an Icon."""
    whole = [
        Icon(icon, Drawing("", 0, 0, 1, 1)) if isinstance(icon, str) else icon for icon in icons
    ]
    return IconSet("x", tuple(whole), is_emoji, Origin(), (), collections.Counter())


def coded(code, *names):
    return Icon(names[0] if names else code, Path(code), names[1:], parse_code_points(code))


def concept(*sets):
    """The concept of the first icon of the first set."""
    return find_concepts(sets)[0][0]


def name(*sets):
    return concept(*sets).name


# Each in a set of another habit: noto, fxemoji, streamline, fluent 3d, an older name of Unicode.
@pytest.mark.parametrize(
    ("icon", "result"),
    [
        ("strawberry", "strawberry"),
        ("strawberry-2", "strawberry"),
        (coded("1f353"), "strawberry"),
        ("admissiontickets", "admission tickets"),
        ("bear-face", "bear"),
        ("aubergine", "eggplant"),
        ("womans-hat", "woman's hat"),
        ("keycap-1", "keycap 1"),
        ("1st-place-medal", "1st place medal"),
        ("flag-for-france", "flag of france"),
        ("franceflag", "flag of france"),
        ("flag-cote-divoire", "flag of cote d'ivoire"),
        (coded("1f1eb-1f1f7"), "flag of france"),
        ("Red apple", "red apple"),
    ],
)
def test_one_concept_has_one_name(icon, result):
    assert name(icon_set(icon)) == result


def test_short_names_count_in_sets_of_emoji_alone():
    assert name(icon_set("heart")) == "red heart"
    assert name(icon_set("heart", is_emoji=False)) == "heart"
    assert name(icon_set("apple-logo", is_emoji=False)) == "apple logo"
    # "x" is a short name of the cross mark, and a company.
    assert name(icon_set("x", is_emoji=False)) == "x"


def test_other_names_in_the_set_count():
    icon = Icon("mens-room-sign", Drawing("", 0, 0, 1, 1), ("cucumber",))
    assert name(icon_set(icon)) == "cucumber"


def test_names_that_a_set_gives_to_code_points_count_in_the_others():
    noto = icon_set(coded("1f9d1-200d-1f3a8", "person-painter", "person-artist"))
    for spelling in ("person-painter", "personartist", "Person artist"):
        assert name(icon_set(spelling), noto) == "artist"
    assert name(icon_set("person-painter")) == "person painter"


def test_code_points_that_the_table_lacks_are_named_by_another_set():
    unknown = coded("e50a")
    assert find_concepts([icon_set(unknown)]) == [[None]]
    assert name(icon_set(unknown), icon_set(coded("e50a", "shibuya-109"))) == "shibuya 109"


def test_trailing_numbers_are_variants_of_emoji_alone():
    assert name(icon_set("clinking-glasses-5")) == "clinking glasses"
    assert name(icon_set("battery-of-tests-5")) == "battery of tests 5"
    assert name(icon_set("floppydisk2")) == "floppy disk"


def test_names_written_together_are_split():
    assert name(icon_set("foxgrin", "catside")) == "fox grin"
    assert name(icon_set("foxgrin", "cat-side")) == "foxgrin"


def test_a_name_of_no_ascii_letters_is_kept():
    assert name(icon_set("日本地図")) == "日本地図"


@pytest.mark.parametrize(
    "icon",
    [
        coded("1f44d-1f3fd"),
        "thumbs-up-medium-skin-tone",
        "waving-hand-medium-dark-skin-tone",
        "women-holding-hands-medium-skin-tone-light-skin-tone",
        # Not a name of CLDR; without its tone it is one of Unicode.
        "person-with-blond-hair-dark-skin-tone",
        "my-own-hero-dark-skin-tone",
    ],
)
def test_skin_tones(icon):
    found = concept(icon_set(icon))
    assert found.has_skin_tone and "skin tone" in found.name


def test_short_skin_tones_of_a_set_that_has_all():
    tones = [f"elf-{t}" for t in ("dark", "light", "medium", "medium-dark", "medium-light")]
    found = find_concepts([icon_set("elf", *tones)])[0]
    assert [c.has_skin_tone for c in found] == [False] + 5 * [True]
    assert [c.name for c in found[:2]] == ["elf", "elf dark skin tone"]
    assert len({c.family for c in found}) == 1
    assert not concept(icon_set("theme-dark", "theme-light")).has_skin_tone
    assert not concept(icon_set("light-skin-tone")).has_skin_tone  # the patch of colour


@pytest.mark.parametrize(
    "icons",
    [
        ("artist", "man-artist", "woman-artist", "woman-artist-dark-skin-tone", "man-artist-2"),
        ("thumbs-up", coded("1f44d-1f3fd"), "thumbs-up-1"),
        ("my-own-hero", "my-own-hero-dark-skin-tone"),
    ],
)
def test_variants_are_a_family(icons):
    (found,) = find_concepts([icon_set(*icons)])
    assert len({c.family for c in found}) == 1


def test_flags_and_keycaps_are_no_families():
    icons = ("flag-france", "flag-japan", "pirate-flag", "keycap-1", "keycap-2", "dog", "cat")
    (found,) = find_concepts([icon_set(*icons)])
    assert len({c.family for c in found}) == len(icons)
