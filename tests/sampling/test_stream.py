"""The order of drawing, with stages that are plain functions."""

import itertools

import numpy as np
import pytest

from imagen_jax.sampling.stream import StageBatches, draw_missing


class Shelf(dict):
    """Pictures by stage and row; `put` are those that were drawn."""

    def __init__(self, *args):
        super().__init__(*args)
        self.put = []

    def has(self, stage, row):
        return (stage, row) in self

    def read(self, stage, row):
        return self[stage, row]

    def write(self, stage, row, picture):
        self.put.append((stage, row))
        self[stage, row] = picture


def stages(sizes, log):
    """ "a" draws its row, "b" adds 100 and "c" 1000 to what they are given."""

    def make(name, size, add):
        def draw(rows, low_res):
            assert len(rows) == size
            log.append((name, rows.tolist()))
            start = rows.reshape(-1, 1, 1, 1) if low_res is None else low_res
            return np.broadcast_to(start, (size, 1, 1, 3)) + add

        return StageBatches(name, size, draw)

    return [
        make(name, size, add)
        for (name, size), add in zip(sizes.items(), (0, 100, 1000), strict=False)
    ]


@pytest.mark.parametrize("sizes", [{"a": 4, "b": 2, "c": 3}, {"a": 1, "b": 5, "c": 2}, {"a": 7}])
def test_every_picture_follows_from_its_row_in_bounded_memory(sizes):
    log, shelf, count = [], Shelf(), []
    draw_missing(stages(sizes, log), 7, None, shelf, lambda name, number: count.append(number))
    names = list(sizes)
    for row in range(7):
        for name, value in zip(names, (row, row + 100, row + 1100), strict=False):
            assert (shelf[name, row] == value).all()
    assert sum(count) == 7 * len(names)
    # Batches start at multiples of the size; the last one is filled up with its last row.
    for name, size in sizes.items():
        expected = [np.minimum(np.arange(s, s + size), 6).tolist() for s in range(0, 7, size)]
        assert [rows for stage, rows in log if stage == name] == expected
    # No stage is more than its own and the next one's batch ahead of the next.
    for first, second in itertools.pairwise(names):
        ahead = 0
        for name, _ in shelf.put:
            ahead += (name == first) - (name == second)
            assert ahead <= sizes[first] + sizes[second]


def test_what_is_there_is_not_drawn_again():
    log, whole = [], Shelf()
    sizes = {"a": 2, "b": 2, "c": 2}
    draw_missing(stages(sizes, log), 6, None, whole, lambda *_: None)
    gone = {("a", 0), ("b", 0), ("b", 3), ("c", 0), ("c", 3), ("c", 5), ("a", 4)}
    shelf = Shelf({key: value for key, value in whole.items() if key not in gone})
    draw_missing(stages(sizes, log), 6, None, shelf, lambda *_: None)
    assert set(shelf.put) == gone and len(shelf.put) == len(gone)
    for key, value in whole.items():
        np.testing.assert_array_equal(shelf[key], value)


def test_the_first_stage_may_enlarge_a_picture():
    shelf = Shelf()
    picture = np.full((1, 1, 3), 9)
    draw_missing(stages({"a": 2}, []), 3, picture, shelf, lambda *_: None)
    assert [int(shelf["a", row].max()) for row in range(3)] == [9, 9, 9]


def test_a_failure_keeps_what_was_drawn():
    shelf, log = Shelf(), []
    parts = stages({"a": 2, "b": 2}, log)

    def broken(rows, low_res):
        if rows[0] >= 2:
            raise KeyboardInterrupt
        return parts[1].draw(rows, low_res)

    with pytest.raises(KeyboardInterrupt):
        draw_missing([parts[0], StageBatches("b", 2, broken)], 6, None, shelf, lambda *_: None)
    assert set(shelf) == {("a", 0), ("a", 1), ("b", 0), ("b", 1), ("a", 2), ("a", 3)}
