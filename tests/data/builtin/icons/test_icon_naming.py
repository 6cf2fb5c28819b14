import pytest

from imagen_jax.data.builtin.icons.emoji_names import emoji_table, parse_code_points
from imagen_jax.data.builtin.icons.naming import (
    are_run_together,
    split_run_together,
    squeeze,
    style_name,
    words,
)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("red-apple", "red apple"),
        ("Food & Drink", "food and drink"),
        ("woman’s_hat", "woman's hat"),
        ("Piñata!", "pinata"),
        ("1st-place--medal", "1st place medal"),
        ("日本", ""),
    ],
)
def test_words(text, result):
    assert words(text) == result
    assert words(result) == result


def test_squeezed_names_have_no_separators():
    assert {squeeze(n) for n in ("Red apple", "red-apple", "redapple", "red_apple")} == {"redapple"}
    assert squeeze("woman's hat") == squeeze("womans-hat")


@pytest.mark.parametrize(
    ("set_name", "style"),
    [
        ("noto", "noto"),
        ("twemoji", "twemoji"),
        ("fluent-emoji", "fluent"),
        ("fluent-emoji-flat", "fluent flat"),
        ("fluent-emoji-3d", "fluent 3d"),
        ("emojione", "emojione"),
        ("fxemoji", "fxemoji"),
        ("streamline-emojis", "streamline"),
        ("mdi", "mdi"),
        ("vscode-icons", "vscode"),
        ("emoji", "emoji"),
    ],
)
def test_styles(set_name, style):
    assert style_name(set_name) == style


def test_names_written_together():
    vocabulary = emoji_table().vocabulary
    for name, result in [
        ("foxgrin", "fox grin"),
        ("backofenvelope", "back of envelope"),
        ("clock12thirty", "clock 12 thirty"),
        ("strawberry", "strawberry"),
        ("kubernetes", "kubernetes"),
        ("exclaimationquestionmark", "exclaimationquestionmark"),
        ("2hearts", "2 hearts"),
    ]:
        assert split_run_together(name, vocabulary) == result
    # The fewest words; of several as few, those that begin with the longest.
    assert split_run_together("redapplepie", {"red", "apple", "pie", "redapple", "applepie"}) == (
        "redapple pie"
    )
    assert are_run_together(["firstquartermoon"] * 99 + ["bunny-ears"])
    assert not are_run_together(["airplane", "red-apple", "cat"])


def test_code_points():
    assert parse_code_points("1f353") == "🍓"
    assert parse_code_points("0023-FE0F-20e3") == "#⃣"
    for text in ("strawberry", "1f353-", "110000", "d800", "f", ""):
        assert parse_code_points(text) == ""


def test_each_emoji_is_found_by_its_name_alone():
    table = emoji_table()
    assert len(table.names) > 3500
    for sequence, name in table.names.items():
        found = table.sequences[squeeze(name)]
        assert table.names[found] == name, sequence
        assert words(name) == name
