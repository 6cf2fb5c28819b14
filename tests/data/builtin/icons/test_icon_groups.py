import collections
import os

import pytest
from icon_files import write_styles

from imagen_jax.data.builtin.icons.groups import (
    SEEN,
    UNSEEN_CONCEPT,
    UNSEEN_PAIR,
    find_groups,
)
from imagen_jax.data.builtin.icons.records import IconRecords

STYLES = [f"style {i}" for i in range(8)]


def drawn(number, styles=STYLES):
    """Concepts in all styles, each a family of its own."""
    return [(f"thing {i}", f"thing {i}", style) for i in range(number) for style in styles]


def of_group(shown, group):
    return {(c, s) for (c, _, s), g in zip(shown, find_groups(shown), strict=True) if g == group}


def check_invariants(shown, groups):
    """What the groups promise, for icons given as concept, family and style."""
    trained = collections.defaultdict(set)
    families = collections.defaultdict(set)
    pairs = collections.defaultdict(set)
    for (concept, family, style), group in zip(shown, groups, strict=True):
        families[family].add(group)
        pairs[family, style].add(group)
        if group == SEEN:
            trained[concept].add(style)
    for (concept, _, style), group in zip(shown, groups, strict=True):
        if group == UNSEEN_PAIR:
            assert style not in trained[concept] and len(trained[concept]) >= 2
        if group == UNSEEN_CONCEPT:
            assert concept not in trained
    assert all(len(found) == 1 for found in pairs.values())
    assert all(
        found == {UNSEEN_CONCEPT} or UNSEEN_CONCEPT not in found for found in families.values()
    )


def test_invariants_and_shares():
    shown = drawn(3000)
    groups = find_groups(shown)
    check_invariants(shown, groups)
    count = collections.Counter(groups)
    assert count[UNSEEN_CONCEPT] / len(shown) == pytest.approx(0.02, abs=0.007)
    assert count[UNSEEN_PAIR] / (len(shown) - count[UNSEEN_CONCEPT]) == pytest.approx(
        0.05, abs=0.005
    )


def test_concepts_of_two_styles_have_no_unseen_pairs():
    assert not of_group(drawn(1000, STYLES[:2]), UNSEEN_PAIR)
    assert of_group(drawn(1000, STYLES[:3]), UNSEEN_PAIR)
    check_invariants(drawn(1000, STYLES[:3]), find_groups(drawn(1000, STYLES[:3])))


def test_variants_stay_together():
    shown = [
        (f"{gender} {i}", str(i), style)
        for i in range(500)
        for gender in ("person", "man", "woman")
        # Not every style has all variants.
        for style in STYLES[: 4 if gender == "woman" else 8]
    ]
    groups = find_groups(shown)
    check_invariants(shown, groups)
    assert groups.count(UNSEEN_PAIR) > 100


def test_a_variant_without_other_styles_keeps_its_pair_in_training():
    whole = drawn(1000)
    lonely = sorted(of_group(whole, UNSEEN_PAIR))[0]
    shown = [*whole, ("a variant", lonely[0], lonely[1])]
    assert lonely not in of_group(shown, UNSEEN_PAIR)
    check_invariants(shown, find_groups(shown))


def test_order_does_not_matter():
    shown = drawn(200)
    again = list(reversed(shown))
    assert find_groups(again) == list(reversed(find_groups(shown)))


def test_another_set_moves_nothing_into_training():
    few, many = drawn(1000, STYLES[:4]), drawn(1000)
    for group in (UNSEEN_PAIR, UNSEEN_CONCEPT):
        assert of_group(few, group)
        assert of_group(few, group) <= of_group(many, group)


# IMAGEN_JAX_ICONS names a folder of real sets, such as scripts/fetch_icons.sh makes.
REAL = [path for path in [os.environ.get("IMAGEN_JAX_ICONS")] if path]


@pytest.mark.parametrize("keep_skin_tones", [False, True])
@pytest.mark.parametrize("path", ["", *REAL])
def test_invariants_of_records(tmp_path, path, keep_skin_tones):
    if not path:
        things = [f"thing {i}" for i in range(150)]
        people = [f"{p} artist{t}" for p in ("man", "woman") for t in ("", " dark skin tone")]
        styles = {style: things + people for style in STYLES[:5]}
        path = str(write_styles(tmp_path, styles))
    whole, train, held_out = (
        IconRecords(path, split, 16, keep_skin_tones=keep_skin_tones)
        for split in (None, "train", "held_out")
    )
    keys = [[r.key(i) for i in range(len(r))] for r in (whole, train, held_out)]
    assert keys[0] == keys[1] + keys[2] and whole.num_held_out == len(keys[2]) > 0
    assert len(set(map(str, keys[0]))) == len(keys[0])
    assert {key.group for key in keys[1]} == {SEEN}
    concepts = [whole.concept(i) for i in range(len(whole))]
    assert [concept.name for concept in concepts] == [key.concept for key in keys[0]]
    assert any(concept.has_skin_tone for concept in concepts) == keep_skin_tones
    shown = [(c.name, c.family, key.style) for c, key in zip(concepts, keys[0], strict=True)]
    check_invariants(shown, [key.group for key in keys[0]])
