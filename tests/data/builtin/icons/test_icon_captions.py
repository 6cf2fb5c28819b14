import pytest

from imagen_jax.data.builtin.icons.captions import icon_captions, with_article


def test_phrasings():
    captions = icon_captions("strawberry", "noto", "")
    assert captions == (
        "a strawberry, noto style",
        "strawberry, noto style",
        "a strawberry in the noto style",
        "strawberry in the noto style",
        "strawberry",
    )
    assert icon_captions("grapes", "noto", "") == (
        "grapes, noto style",
        "grapes in the noto style",
        "grapes",
    )


def test_a_quarter_names_the_category():
    captions = {i: icon_captions(f"thing {i}", "noto", "Food & Drink") for i in range(1000)}
    named = [i for i, found in captions.items() if f"thing {i}, food and drink" in found]
    assert 200 < len(named) < 300
    assert all(len(captions[i]) == (6 if i in named else 5) for i in captions)
    assert captions == {i: icon_captions(f"thing {i}", "noto", "Food & Drink") for i in captions}


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("strawberry", "a strawberry"),
        ("orange", "an orange"),
        ("hourglass done", "an hourglass done"),
        ("unicorn", "a unicorn"),
        ("unamused face", "an unamused face"),
        ("umbrella", "an umbrella"),
        ("euro banknote", "a euro banknote"),
        ("ewe", "a ewe"),
        ("one o'clock", "a one o'clock"),
        ("onion", "an onion"),
        ("sos button", "an sos button"),
        ("o button blood type", "an o button blood type"),
        ("p button", "a p button"),
        ("x ray", "an x ray"),
        ("1st place medal", "a 1st place medal"),
        ("8 ball", "an 8 ball"),
        ("grapes", "grapes"),
        ("glasses", "glasses"),
        ("octopus", "an octopus"),
        ("compass", "a compass"),
        ("rhinoceros", "a rhinoceros"),
        ("face with open eyes", "a face with open eyes"),
        ("man lifting weights", "a man lifting weights"),
        ("men holding hands", "men holding hands"),
        ("statue of liberty", "a statue of liberty"),
        ("people hugging", "people hugging"),
        ("bread", "bread"),
        ("日本", "a 日本"),
    ],
)
def test_articles(name, result):
    assert with_article(name) == result
