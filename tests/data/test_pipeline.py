import collections
import dataclasses
import itertools
import threading

import numpy as np
import pytest
from absl import flags

from imagen_jax.data.builtin.shapes.source import ShapesSource
from imagen_jax.data.mixing import MixedSource
from imagen_jax.data.pipeline import batches, item_captions, item_order, spread_items
from imagen_jax.data.source import BadItem, FilteredItem, Item
from imagen_jax.errors import UserError

SIZE = 8


class Numbered:
    """A finite source whose captions are indices; some items cannot be read."""

    endless = False

    def __init__(self, length, bad=None, kind=BadItem):
        self.length, self.bad, self.kind = length, bad or {}, kind

    def __len__(self):
        return self.length

    def item(self, index):
        if index in self.bad:
            raise self.kind(f"number {index} is cut", f"kind {self.bad[index]}")
        x = np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3)
        return Item(x + np.uint8(index % 256), str(index))


def run(source, steps, **settings):
    settings = {"batch_size": 4, "image_size": SIZE, "seed": 0, **settings}
    return list(itertools.islice(batches(source, **settings), steps))


def visited(results):
    return [int(c) for batch in results for c in batch["captions"]]


def test_each_epoch_visits_everything_once_in_another_order():
    order = visited(run(Numbered(12), 9))
    epochs = [order[0:12], order[12:24], order[24:36]]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(12))
    assert order != visited(run(Numbered(12), 9, seed=1))


@pytest.mark.parametrize("start", [0, 1, 7, 12, 29])
def test_resume_anywhere(start):
    whole = visited(run(Numbered(13), 12))
    resumed = visited(run(Numbered(13), 4, start_index=start))
    assert resumed == whole[start : start + 16]


@pytest.mark.parametrize("process_count", [2, 4])
@pytest.mark.parametrize("batch_size", [4, 8])
def test_processes_share_the_same_items(process_count, batch_size):
    steps = 24 // batch_size
    alone = run(Numbered(10), steps, batch_size=batch_size, start_index=3, flip=True)
    parts = [
        run(
            Numbered(10),
            steps,
            batch_size=batch_size,
            start_index=3,
            flip=True,
            rows=rows,
        )
        for rows in np.split(np.arange(batch_size), process_count)
    ]
    for step, batch in enumerate(alone):
        joined = np.concatenate([part[step]["image"] for part in parts])
        np.testing.assert_array_equal(joined, batch["image"])
        captions = [caption for part in parts for caption in part[step]["captions"]]
        assert captions == batch["captions"]


def test_order_does_not_depend_on_batch_size_or_threads():
    order = visited(run(Numbered(10), 12, batch_size=2))
    assert order == visited(run(Numbered(10), 3, batch_size=8))
    assert order == visited(run(Numbered(10), 12, batch_size=2, num_threads=0))
    assert order == [item_order(Numbered(10), 0)(p) for p in range(24)]


@pytest.mark.multiprocess
def test_worker_processes_read_the_same():
    flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
    source = ShapesSource("train", SIZE)
    here = run(source, 5)
    stream = batches(source, batch_size=4, image_size=SIZE, seed=0, num_workers=2)
    there = list(itertools.islice(stream, 5))
    stream.close()
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        assert a["captions"] == b["captions"]


BAD = {2: "a", 3: "a", 9: "b"}


def test_left_out_items_are_replaced_and_counted():
    results = run(Numbered(10, bad=BAD), 10)  # four epochs
    order, full_order = visited(results), visited(run(Numbered(10), 10))
    pairs = list(zip(full_order, order, strict=True))
    assert all(x == y for x, y in pairs if x not in BAD)
    assert not set(order) & BAD.keys()
    # The replacement depends on the position: it is not always the same item.
    assert len({y for x, y in pairs if x == 2}) > 1
    total = collections.Counter()
    for k, batch in enumerate(results):
        first_tries = sum(i in BAD for i in full_order[4 * k : 4 * k + 4])
        assert sum(batch["left_out"]["bad"].values()) >= first_tries
        assert batch["left_out"]["filtered"] == {}
        total.update(batch["left_out"]["bad"])
    assert total["kind a"] >= 8 and total["kind b"] >= 4
    resumed = run(Numbered(10, bad=BAD), 6, start_index=15)
    assert visited(resumed) == order[15 : 15 + 24]
    for count in (2, 4):
        parts = [
            run(Numbered(10, bad=BAD), 10, rows=rows) for rows in np.split(np.arange(4), count)
        ]
        for step, whole in enumerate(results):
            assert whole["captions"] == [c for part in parts for c in part[step]["captions"]]
            for group in ("bad", "filtered"):
                of_parts = collections.Counter()
                for part in parts:
                    of_parts.update(part[step]["left_out"][group])
                assert of_parts == whole["left_out"][group]


def test_the_remaining_items_are_drawn_evenly():
    # A third of a large source is missing in one piece, like a lost shard.
    length, missing = 3000, range(1000, 2000)
    order = visited(run(Numbered(length, bad=dict.fromkeys(missing, "lost")), 750))
    counts = collections.Counter(order)
    assert not counts.keys() & set(missing)
    assert set(counts) == set(range(length)) - set(missing)  # each of the others at least once
    replacements = [n - 1 for n in counts.values()]
    # 1,000 draws over 2,000 items: a Poisson distribution of mean 1/2.
    assert sum(replacements) == 1000 and max(replacements) <= 7


def test_filtered_items_are_counted_apart(caplog):
    results = run(Numbered(10, bad=dict.fromkeys(range(5), "small"), kind=FilteredItem), 5)
    assert min(visited(results)) >= 5
    assert sum(b["left_out"]["filtered"].get("kind small", 0) for b in results) >= 10
    assert all(b["left_out"]["bad"] == {} for b in results)
    assert "left out" not in caplog.text


def test_a_source_without_usable_items_is_an_error():
    for length in (3, 5000):
        for threads in (1, 0):
            bad = Numbered(length, bad=dict.fromkeys(range(length), "x"))
            with pytest.raises(UserError, match=f"{min(length, 1000)} kind x"):
                run(bad, 1, num_threads=threads)


def test_one_of_several_captions_is_drawn_by_position():
    class Captioned(Numbered):
        def item(self, index):
            return dataclasses.replace(super().item(index), other_captions=("b", "c"))

    order = [c for batch in run(Captioned(1), 150) for c in batch["captions"]]
    counts = collections.Counter(order)
    assert counts.keys() == {"0", "b", "c"} and min(counts.values()) > 150  # 200 +- 4 x 11.5
    again = [c for batch in run(Captioned(1), 30, start_index=101) for c in batch["captions"]]
    assert again == order[101 : 101 + 120]


def test_a_mix_has_its_weights_and_every_part_its_epochs():
    class Lettered(Numbered):
        def item(self, index):
            return dataclasses.replace(super().item(index), caption=f"{self.letter}{index}")

    parts = Lettered(7), Lettered(20)
    parts[0].letter, parts[1].letter = "a", "b"
    mixed = MixedSource(parts, (3.0, 1.0))
    assert len(mixed) == 27
    order = [c for batch in run(mixed, 100) for c in batch["captions"]]
    of_a = [c for c in order if c[0] == "a"]
    of_b = [c for c in order if c[0] == "b"]
    assert (len(of_a), len(of_b)) == (300, 100)
    for epoch in range(40):
        assert len(set(of_a[7 * epoch : 7 * epoch + 7])) == 7
    for epoch in range(5):
        assert len(set(of_b[20 * epoch : 20 * epoch + 20])) == 20
    # The parts are interleaved.
    assert all(4 <= sum(c[0] == "a" for c in order[k : k + 8]) <= 8 for k in range(0, 400, 8))
    again = [c for batch in run(mixed, 20, start_index=33) for c in batch["captions"]]
    assert again == order[33 : 33 + 80]


def test_batch_contents():
    (batch,) = run(Numbered(10), 1)
    assert batch["image"].dtype == np.uint8 and batch["image"].shape == (4, SIZE, SIZE, 3)
    assert batch["left_out"] == {"bad": {}, "filtered": {}}
    for image, caption in zip(batch["image"], batch["captions"], strict=True):
        np.testing.assert_array_equal(image, Numbered(10).item(int(caption)).image)


def test_flips_are_half_of_the_pictures_and_belong_to_the_position():
    plain, flipped = run(Numbered(10), 50), run(Numbered(10), 50, flip=True)
    mirrored = []
    for a, b in zip(plain, flipped, strict=True):
        for x, y in zip(a["image"], b["image"], strict=True):
            mirrored.append(bool((y == x[:, ::-1]).all()))
            assert mirrored[-1] or (y == x).all()
    assert 70 < sum(mirrored) < 130  # of 200: four standard deviations
    (later,) = run(Numbered(10), 1, start_index=40, flip=True)
    np.testing.assert_array_equal(later["image"], flipped[10]["image"])


def test_crops_lie_on_multiples_and_reach_everywhere():
    corners = set()
    for batch in run(Numbered(1), 30, crop_size=4, crop_multiple=2):
        assert batch["image"].shape == (4, 4, 4, 3)
        for crop in batch["image"]:
            top, left = divmod(int(crop[0, 0, 0]) // 3, SIZE)
            whole = Numbered(1).item(0).image
            np.testing.assert_array_equal(crop, whole[top : top + 4, left : left + 4])
            corners.add((top, left))
    assert corners == set(itertools.product((0, 2, 4), repeat=2))


def test_an_endless_source_is_read_in_order():
    source = ShapesSource("train", SIZE, seed=3)
    (batch,) = run(source, 1, start_index=1000)
    assert batch["captions"] == [source.item(1000 + i).caption for i in range(4)]
    np.testing.assert_array_equal(batch["image"][2], source.item(1002).image)


def test_spread_items_skip_what_cannot_be_read():
    found = [item.caption for item in spread_items(Numbered(3, bad={1: "x"}), 8)]
    assert found in (["0", "0", "2"], ["0", "2", "2"])
    assert [item.caption for item in spread_items(Numbered(10), 3)] == ["0", "3", "6"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"start_index": -1}, "start_index"),
        ({"seed": -1}, "seed"),
        ({"crop_size": 16}, "crop size 16"),
        ({"crop_size": 5, "crop_multiple": 2}, "crop size 5"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(UserError, match=message):
        run(Numbered(4), 1, **settings)
    with pytest.raises(UserError, match="no items"):
        run(Numbered(0), 1)


def test_all_captions_that_may_be_drawn_are_listed():
    class Captioned(Numbered):
        def item(self, index):
            return dataclasses.replace(super().item(index), other_captions=("b", "c"))

    assert item_captions(Captioned(3), 2) == ("2", "b", "c")
    with pytest.raises(BadItem):
        item_captions(Captioned(3, bad={2: "cut"}), 2)


@pytest.mark.parametrize("batch_size", [2, 16])
def test_as_many_rows_are_read_at_once_as_there_are_threads(batch_size):
    class Meeting(Numbered):
        """The first items wait until `threads` of them are being read."""

        def __init__(self, threads):
            super().__init__(64)
            self.threads, self.reading = threads, 0
            self.met = threading.Condition()
            self.most = 0

        def item(self, index):
            with self.met:
                self.reading += 1
                self.most = max(self.most, self.reading)
                self.met.notify_all()
                self.met.wait_for(lambda: self.most >= self.threads, timeout=30)
                self.reading -= 1
            return super().item(index)

    meeting = Meeting(16)
    results = run(meeting, 32 // batch_size, batch_size=batch_size, num_threads=16)
    assert meeting.most == 16
    assert visited(results) == visited(run(Numbered(64), 32 // batch_size, batch_size=batch_size))
