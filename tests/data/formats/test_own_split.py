"""A store keeps the split and the provenance of the set that it was made from."""

import collections

import layouts
import numpy as np
import pytest

from imagen_jax.config import DataConfig, SourceConfig
from imagen_jax.data.formats.array_record import PreparedRecords
from imagen_jax.data.prepare import plan_store, reader
from imagen_jax.data.records import Record, SplitRecords
from imagen_jax.stores.manifest import read_manifest
from imagen_jax.stores.writer import write_shards

PROVENANCE = {"drawn by": {"license": "MIT"}}


class Numbered:
    """Pictures by number, some of them damaged; the last are held out."""

    def __init__(self, number, num_held_out, damaged=()):
        self.number, self.num_held_out, self.damaged = number, num_held_out, damaged
        self.provenance = PROVENANCE
        self.skipped = collections.Counter()

    def __len__(self):
        return self.number

    def record(self, index):
        image = b"damaged" if index in self.damaged else layouts.png(index)
        return Record(str(index), image, (f"number {index}",))

    def stamps(self):
        return np.arange(self.number, dtype=np.uint64)


class WithoutSplit(Numbered):
    def __init__(self, number):
        super().__init__(number, None)
        del self.num_held_out, self.provenance


def store(path, records, max_items=0):
    config = DataConfig(source="folder")
    plan = plan_store(config, records, str(path), 8, max_items, shard_size=30)
    write_shards(plan, reader(config, records, 8, num_threads=2))
    return PreparedRecords(SourceConfig(source="array_record", path=str(path)))


def keys(records):
    return [int(records.record(i).key) for i in range(len(records))]


def sides(records):
    return [keys(SplitRecords(records, split)) for split in ("train", "held_out")]


def test_the_last_records_are_held_out():
    records = Numbered(130, 12)
    assert sides(records) == [list(range(118)), list(range(118, 130))]
    held_out = SplitRecords(records, "held_out")
    np.testing.assert_array_equal(held_out.stamps(), np.arange(118, 130))


def test_a_store_has_the_same_sides(tmp_path):
    # A shard with records of both sides, and some left out on either.
    records = Numbered(130, 25, damaged=(3, 90, 110, 129))
    stored = store(tmp_path / "one", records)
    assert sides(stored) == [
        [i for i in range(105) if i not in (3, 90)],
        [i for i in range(105, 130) if i not in (110, 129)],
    ]
    assert stored.provenance == PROVENANCE
    assert read_manifest(tmp_path / "one").meta["provenance"] == PROVENANCE
    again = store(tmp_path / "two", stored)
    assert sides(again) == sides(stored) and again.provenance == PROVENANCE


@pytest.mark.parametrize("max_items", [0, 100])
def test_a_set_that_holds_nothing_out_is_not_split(tmp_path, max_items):
    records = Numbered(130, 20 if max_items else 0)
    stored = store(tmp_path / "store", records, max_items)
    assert sides(stored) == 2 * [list(range(max_items or 130))]


def test_all_other_sets_are_split_by_position(tmp_path):
    stored = store(tmp_path / "store", WithoutSplit(130))
    assert stored.num_held_out is None and stored.provenance == {}
    assert sides(stored)[1] == list(range(19, 120, 20))
    assert not {"own_split", "provenance"} & read_manifest(tmp_path / "store").meta.keys()
