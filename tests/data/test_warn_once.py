"""Each broken picture is warned of once, whoever reads it and however often."""

import collections

from test_pipeline import Numbered, run

from imagen_jax.data.warn_once import MAX_LOGGED, WarnOnce


def test_each_message_is_logged_once_and_few_of_a_kind(caplog):
    warn = WarnOnce()
    for _ in range(3):
        for number in range(8):
            warn("truncated picture", f"file {number}")
        warn("empty file", "file 9")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(set(messages)) == MAX_LOGGED + 1
    assert messages[MAX_LOGGED - 1].endswith("file 4; more of this kind are only counted")
    assert messages[-1] == "left out (empty file): file 9"


def test_batches_carry_the_messages_of_all_bad_items():
    found = collections.Counter()
    for batch in run(Numbered(10, bad={2: "a", 9: "b"}), 10):
        found.update(tuple(message) for message in batch["messages"])
        assert len(batch["messages"]) == sum(batch["left_out"]["bad"].values())
    assert {kind for kind, _ in found} == {"kind a", "kind b"}
