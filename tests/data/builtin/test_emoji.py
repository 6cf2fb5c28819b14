import re

import numpy as np
import pytest

from imagen_jax.data.builtin import emoji
from imagen_jax.data.builtin.emoji import EmojiSource, clean_name, family, find_font
from imagen_jax.errors import UserError


@pytest.fixture(scope="module")
def sources():
    try:
        find_font()
    except UserError as error:
        pytest.skip(str(error))
    return {split: EmojiSource("", split, 32) for split in ("train", "held_out")}


@pytest.fixture(scope="module")
def index(sources):
    return {
        name: (source, i)
        for source in sources.values()
        for i, (name, _) in enumerate(source._items)
    }


def picture(index, name) -> np.ndarray:
    source, i = index[name]
    item = source.item(i)
    assert item.caption == name
    return item.image.astype(int)


def test_nearly_every_bitmap_is_named(sources):
    # 3,789 in version 2.042 of the font; other versions have more or fewer.
    total = sum(map(len, sources.values()))
    assert total > 3500
    assert 0.03 < len(sources["held_out"]) / total < 0.07


def test_names_are_plain_words_and_nearly_unique(index, sources):
    assert all(re.fullmatch(r"[A-Za-z0-9' ]+", name) for name in index)
    assert len(index) > 0.99 * sum(map(len, sources.values()))


def test_pictures_belong_to_their_names(index):
    heart = picture(index, "red heart")
    assert heart.shape == (32, 32, 3)
    assert (heart[0] > 250).all() and (heart[-1] > 250).all()  # padded to a square with white
    r, g, b = heart[14, 16]
    assert r > 180 and g < 80 and b < 80
    flag = picture(index, "flag of France")  # a sequence of two code points; not mirrored
    assert flag[16, 5, 2] > flag[16, 5, 0] + 50 and flag[16, 27, 0] > flag[16, 27, 2] + 50
    dark = picture(index, "thumbs up dark skin tone").mean()
    assert dark < picture(index, "thumbs up light skin tone").mean() - 5
    assert np.abs(picture(index, "man farmer") - picture(index, "woman farmer")).max() > 50


def test_sizes(index, sources):
    source, i = index["red heart"]
    large = EmojiSource("", "train" if source is sources["train"] else "held_out", 256)
    item = large.item(i)
    assert item.image.shape == (256, 256, 3) and item.image.dtype == np.uint8
    small = item.image.reshape(32, 8, 32, 8, 3).mean((1, 3))
    assert np.abs(small - source.item(i).image).mean() < 2  # of up- and down-sampling


def test_no_variant_crosses_the_split(sources):
    """Compares names instead of code points, so that it does not depend on `family`."""
    bare = {}
    for split, source in sources.items():
        words = set()
        for name, _ in source._items:
            name = re.sub(r"(medium )?(light|medium|dark) skin tone", "", name)
            name = re.sub(r"\b(man|woman|person|men|women|people)\b( facing right)?", "", name)
            words.add("flag" if name.startswith("flag of") else " ".join(name.split()))
        bare[split] = words - {""}
    assert not bare["train"] & bare["held_out"]
    assert "flag" in bare["train"]


@pytest.mark.parametrize(
    "same",
    [
        ("👍", "👍🏿", "👍🏻"),
        ("🧑‍🌾", "👩🏽‍🌾", "👨‍🌾"),
        ("🏃", "🏃‍♀️", "🏃🏿‍♂️‍➡️", "🏃‍♂"),
        ("🇫🇷", "🇯🇵", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🏳️‍🌈"),
        ("💏", "👩🏻‍❤️‍💋‍👨🏿"),
        ("👫", "🧑🏻‍🤝‍🧑🏿", "👭🏽"),
        ("🤝", "🫱🏻‍🫲🏿", "🤝🏽"),
        ("👪", "👨‍👩‍👧", "👩‍👩‍👧‍👦"),
        ("🎅", "🤶🏿", "🧑‍🎄"),
        ("👱", "👱‍♀️", "🧑‍🦰", "👩🏻‍🦳"),
        ("1️⃣", "#️⃣"),
    ],
)
def test_families(same):
    assert len({family(sequence) for sequence in same}) == 1


def test_different_bases_are_different_families():
    bases = ["🐶", "🐱", "👍", "👎", "🧑", "🧒", "🧑‍🌾", "🧑‍🚀", "🇫🇷", "💏", "💑", "🏃", "🚶", "❤"]
    assert len({family(base) for base in bases}) == len(bases)


@pytest.mark.parametrize(
    ("name", "sequence", "clean"),
    [
        (":woman’s_hat:", "👒", "woman's hat"),
        (":Bosnia_&_Herzegovina:", "🇧🇦", "flag of Bosnia and Herzegovina"),
        (":Côte_d’Ivoire:", "🇨🇮", "flag of Cote d'Ivoire"),
        (":O_button_(blood_type):", "🅾", "O button blood type"),
        (":keycap_#:", "#⃣", "keycap hash"),
        (":waving_hand_medium-dark_skin_tone:", "👋🏾", "waving hand medium dark skin tone"),
        (":pirate_flag:", "🏴‍☠", "pirate flag"),
    ],
)
def test_clean_names(name, sequence, clean):
    assert clean_name(name, sequence) == clean


def test_missing_font_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(emoji, "FONT_PATHS", (str(tmp_path / "none.ttf"),))
    with pytest.raises(UserError, match="fonts-noto-color-emoji"):
        EmojiSource("", "train", 32)
    with pytest.raises(UserError, match=r"gone\.ttf.*fonts-noto-color-emoji"):
        EmojiSource(str(tmp_path / "gone.ttf"), "train", 32)
    (tmp_path / "text.ttf").write_text(
        "not a font, but long enough to be read as the header of one"
    )
    with pytest.raises(UserError, match="not a readable font"):
        EmojiSource(str(tmp_path / "text.ttf"), "train", 32)


def test_a_font_without_bitmaps(tmp_path):
    from fontTools.fontBuilder import FontBuilder

    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef"])
    builder.setupHorizontalMetrics({".notdef": (0, 0)})
    builder.save(tmp_path / "plain.ttf")
    with pytest.raises(UserError, match="no colour bitmaps"):
        EmojiSource(str(tmp_path / "plain.ttf"), "train", 32)


@pytest.mark.slow
def test_as_a_tfds_data_set(sources, tmp_path):
    from imagen_jax.config import DataConfig
    from imagen_jax.data.builtin.emoji_tfds import Emoji
    from imagen_jax.data.open import load_records
    from imagen_jax.data.records import DecodedRecords

    builder = Emoji(data_dir=str(tmp_path))
    builder.download_and_prepare()
    for split, expected in sources.items():
        config = DataConfig(source="tfds", path=str(builder.data_dir), split=split)
        stored = DecodedRecords(load_records(config, None), 32)
        assert len(stored) == len(expected)
        for i in range(0, len(stored), 97):
            assert stored.item(i).caption == expected.item(i).caption
            # The stored picture is cropped to a square, that of the source is padded to one.
            assert stored.item(i).image.shape == (32, 32, 3)
