"""The scorer of icons: names by the nearest picture, styles by a fitted classifier."""

import numpy as np
import pytest
from PIL import Image

from imagen_jax.config import DataConfig
from imagen_jax.data.builtin.icons.key import IconKey
from imagen_jax.data.prepare import prepare
from imagen_jax.evaluation import style_classifier
from imagen_jax.evaluation.icon_gallery import SIDE, centred
from imagen_jax.evaluation.icons_scorer import IconsScorer, is_icons
from imagen_jax.evaluation.prompts import load_prompts
from imagen_jax.evaluation.scorer import scorer_of

NUMBER = 60
# Background of the drawings and strength of their outline, by style.
STYLES = {"flat": ((240, 180, 60), 0), "line": ((250, 250, 250), 3), "night": ((40, 60, 160), 1)}


def draw(concept, style, size=64):
    """Ten random rectangles of a concept, in the manner of a style."""
    rng = np.random.default_rng(concept)
    colour, outline = STYLES[style]
    picture = np.full((size, size, 3), 255, np.uint8)
    for low, high in zip(rng.integers(12, 40, (10, 2)), rng.integers(4, 13, (10, 2)), strict=True):
        (top, left), (height, width) = low * size // 64, high * size // 64
        picture[top : top + height, left : left + width] = 0 if outline else colour
        inner = slice(top + outline, top + height - outline)
        picture[inner, left + outline : left + width - outline] = colour
    return picture


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("icons")
    for style in STYLES:
        (root / style).mkdir()
        for concept in range(NUMBER):
            path = root / style / f"quux-{concept:02d}-thing.png"
            Image.fromarray(draw(concept, style)).save(path)
    return DataConfig(source="icons", path=str(root))


@pytest.fixture(scope="module")
def scorer(data):
    return IconsScorer(data)


def concept_of(prompt):
    return int(prompt.claims.concept.split()[1])


def parts(scorer, prompts, pictures):
    scores = scorer.score(pictures, prompts)
    return {part: np.mean([score.parts[part] for score in scores]) for part in scorer.parts}


def test_true_pictures_are_accepted_at_any_size(scorer):
    prompts = scorer.prompts(60)
    for size in (64, 128):
        found = parts(scorer, prompts.prompts, prompts.true_pictures(size))
        assert found == {"name": 1.0, "style": 1.0}, size


def test_pictures_of_other_names_and_styles_are_not(scorer):
    prompts = scorer.prompts(60).prompts
    other_name = (draw((concept_of(p) + 1) % NUMBER, p.claims.style) for p in prompts)
    found = parts(scorer, prompts, other_name)
    assert found["name"] == 0.0 and found["style"] >= 0.95
    styles = list(STYLES)
    other_style = (
        draw(concept_of(p), styles[(styles.index(p.claims.style) + 1) % 3]) for p in prompts
    )
    assert parts(scorer, prompts, other_style)["style"] <= 0.05
    white = (np.full((64, 64, 3), 255, np.uint8) for _ in prompts)
    assert parts(scorer, prompts, white)["name"] <= 0.1


def test_moved_and_noisy_pictures_are_accepted(scorer):
    prompts = scorer.prompts(60).prompts
    rng = np.random.default_rng(0)

    def worse(prompt):
        picture = np.roll(draw(concept_of(prompt), prompt.claims.style), (5, -7), axis=(0, 1))
        noisy = picture + rng.normal(0.0, 3.0, picture.shape)
        return noisy.clip(0, 255).astype(np.uint8)

    assert parts(scorer, prompts, map(worse, prompts))["name"] >= 0.95


def test_what_is_seen_is_told(scorer):
    prompts = scorer.prompts(3).prompts
    other = (concept_of(prompts[0]) + 1) % NUMBER
    (score,) = scorer.score([draw(other, prompts[0].claims.style)], prompts[:1])
    assert score.failed == ["name"] and f"quux {other:02d} thing" in score.seen
    assert prompts[0].claims.style in score.seen


def test_prompts_are_of_each_group_and_their_pictures_are_theirs(data, scorer):
    prompts = load_prompts(data, 30)
    assert prompts.groups == scorer.groups and "unseen pair" in prompts.groups
    for prompt, picture in zip(prompts.prompts, prompts.true_pictures(64), strict=True):
        assert prompt.claims.group == prompt.group
        assert f"{prompt.claims.style} style" in prompt.text
        np.testing.assert_array_equal(picture, draw(concept_of(prompt), prompt.claims.style))
    assert scorer.prompts(10).prompts == prompts.prompts[:10]
    everything = scorer.prompts(1000)
    assert len(everything.prompts) == 3 * NUMBER
    assert "no more prompts" in everything.notes[-1]


def test_a_store_of_the_icons_gives_the_same_scores(data, scorer, tmp_path):
    prepare(data, tmp_path / "store", image_size=64)
    store = DataConfig(source="array_record", path=str(tmp_path / "store"))
    assert is_icons(store) and isinstance(scorer_of(store), IconsScorer)
    other = IconsScorer(store)
    prompts = scorer.prompts(20)
    assert other.prompts(20).prompts == prompts.prompts
    pictures = [draw(place, "flat") for place in range(20)]
    assert other.score(pictures, prompts.prompts) == scorer.score(pictures, prompts.prompts)


def test_other_sources_are_no_icons(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a picture")
    folder = DataConfig(source="folder", path=str(tmp_path))
    assert not is_icons(folder) and scorer_of(folder) is None
    prepare(folder, tmp_path / "store", image_size=64)
    assert not is_icons(DataConfig(source="array_record", path=str(tmp_path / "store")))


def test_one_style_has_names_alone(data):
    alone = IconsScorer(DataConfig(source="icons", path=f"{data.path}/flat"))
    prompts = alone.prompts(5)
    assert alone.parts == ("name",)
    assert parts(alone, prompts.prompts, prompts.true_pictures(64)) == {"name": 1.0}
    assert any("no icons of the groups unseen pair" in note for note in prompts.notes)


def test_notes_tell_how_good_the_classifier_is(scorer):
    assert "(100.0%)" in scorer.notes[-1] and "count as one" not in " ".join(scorer.notes)


def test_styles_of_the_same_drawings_count_as_one():
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [[style_classifier.features(draw(i, s)) for i in range(40)] for s in STYLES]
    )
    names = [s for s in STYLES for _ in range(40)]
    twin = rng.permutation(40) < 20
    names[:40] = ["flat" if is_flat else "twin" for is_flat in twin]
    classifier = style_classifier.fit(rows, names)
    assert classifier.is_style("twin", "flat") and classifier.is_style("flat", "twin")
    assert not classifier.is_style("flat", "line") and not classifier.is_style("night", "twin")
    found = classifier.predict(rows[40:])
    assert found == names[40:]


def test_features_are_histograms():
    row = style_classifier.features(draw(0, "line"))
    assert row.min() >= 0.0 and row.sum() == pytest.approx(4.0, abs=1e-4)
    # A grey of exactly one bin.
    grey = style_classifier.features(np.full((64, 64, 3), round(255 * 3 / 9), np.uint8))
    assert grey[333] == pytest.approx(1.0, abs=1e-6)


def test_centring_moves_the_content_to_the_middle():
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[2:10, 50:60] = 0
    middle = np.full((64, 64, 3), 255, np.uint8)
    middle[28:36, 27:37] = 0
    np.testing.assert_array_equal(centred(picture), centred(middle))
    assert centred(picture).shape == (SIDE * SIDE * 3,)
    white = np.full((64, 64, 3), 255, np.uint8)
    assert (centred(white) == 255.0).all()


def test_keys_are_parsed():
    assert IconKey.parse("seen/flat/a thing/a-thing").concept == "a thing"
