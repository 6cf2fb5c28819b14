import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagen_jax.errors import UserError
from imagen_jax.stores import store as record_store
from imagen_jax.stores.manifest import MANIFEST, read_manifest
from imagen_jax.stores.store import RecordError, RecordStore, verify
from imagen_jax.stores.writer import (
    StorePlan,
    begin_store,
    finish_store,
    make_shard,
    write_shards,
)

LENGTH, SHARD_SIZE = 23, 5


def record(position):
    return random.Random(position).randbytes(position * 37 % 400)


def read(start, stop, notes):
    for position in range(start, stop):
        if position % 7 == 3:
            notes["left out"] += 1
        else:
            yield record(position)


KEPT = [record(i) for i in range(LENGTH) if i % 7 != 3]


def write(directory, reader=read, **settings):
    how = {k: settings.pop(k) for k in list(settings) if k.startswith("pro")}
    return write_shards(plan_of(directory, **settings), reader, **how)


def plan_of(directory, **settings):
    settings = {"length": LENGTH, "shard_size": SHARD_SIZE, "meta": {"of": "test"}, **settings}
    return StorePlan(directory=str(directory), **settings)


def contents(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_what_is_written_is_read(tmp_path, compression):
    manifest = write(tmp_path, compression=compression)
    assert manifest == read_manifest(tmp_path)
    assert [shard.count for shard in manifest.shards] == [4, 5, 4, 4, 3]
    assert manifest.notes == {"left out": 3} and manifest.num_records == 20
    store = pickle.loads(pickle.dumps(RecordStore(tmp_path)))
    assert [store.read(i) for i in range(len(store))] == KEPT
    with pytest.raises(IndexError):
        store.read(20)
    names = {str(name) for name in contents(tmp_path)}
    assert names == {MANIFEST, *(f"shard-0000{i}.array_record" for i in range(5))}
    assert verify(tmp_path) == []


def test_threads_read_the_same_records(tmp_path):
    write(tmp_path)
    store = RecordStore(tmp_path)
    indices = [random.Random(0).randrange(20) for _ in range(2000)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(store.read, indices)) == [KEPT[i] for i in indices]


def test_a_store_may_have_more_shards_than_a_process_may_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(record_store, "_MAX_OPEN", 3)
    write(tmp_path, shard_size=1)
    store, before = RecordStore(tmp_path), len(os.listdir("/dev/fd"))
    order = random.Random(0).choices(range(len(KEPT)), k=200)
    for index in order:
        assert store.read(index) == KEPT[index]
        assert len(os.listdir("/dev/fd")) <= before + 3


def test_processes_make_the_same_store(tmp_path):
    write(tmp_path / "alone")
    results = [write(tmp_path / "three", process_index=i, process_count=3) for i in (2, 0, 1)]
    assert results[:2] == [None, None]
    assert contents(tmp_path / "three") == contents(tmp_path / "alone")


def test_finished_shards_are_not_made_again(tmp_path):
    starts = []

    def failing(start, stop, notes):
        starts.append(start)
        if start == 10:
            raise RuntimeError("no")
        return read(start, stop, notes)

    with pytest.raises(RuntimeError):
        write(tmp_path, failing)
    with pytest.raises(UserError, match="not complete"):
        RecordStore(tmp_path)
    # A shard file without an entry may be damaged: it is made again.
    (tmp_path / "shard-00002.array_record").write_bytes(b"half")
    (tmp_path / ".shard-00002.array_record.1.tmp").write_bytes(b"part")
    later_starts, reported = [], []
    write(
        tmp_path,
        lambda *a: later_starts.append(a[0]) or read(*a),
        progress=lambda *done: reported.append(done),
    )
    assert (starts, later_starts) == ([0, 5, 10], [10, 15, 20])
    assert reported == [(10, 23), (15, 23), (20, 23), (23, 23)]
    write(tmp_path / "alone")
    expected = contents(tmp_path / "alone")
    assert {k: v for k, v in contents(tmp_path).items() if k.parent == Path(".")} == expected
    write(tmp_path, failing)  # complete: nothing is read


def test_shards_made_one_by_one_are_the_same_store(tmp_path):
    write(tmp_path / "whole")
    plan = plan_of(tmp_path / "parts")
    assert begin_store(plan) is None
    shards = [make_shard(plan, i, read) for i in (3, 0, 4, 1, 2)]
    shards.sort(key=lambda shard: shard.file)
    # A shard is made again, the store is finished twice, and a shard is made after that.
    read_calls = []
    assert make_shard(plan, 2, lambda *a: read_calls.append(a)) == shards[2]
    (tmp_path / "parts" / ".shard-00002.array_record.1.tmp").write_bytes(b"part")
    assert finish_store(plan, shards) == finish_store(plan, shards) == begin_store(plan)
    assert make_shard(plan, 2, lambda *a: read_calls.append(a)) == shards[2]
    assert not read_calls
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match="4 shards"):
        finish_store(plan, shards[1:])


def test_a_shard_that_differs_from_its_checksum_is_made_again(tmp_path):
    plan = plan_of(tmp_path)
    begin_store(plan)
    shard = make_shard(plan, 1, read)
    path = tmp_path / shard.file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert make_shard(plan, 1, read) == shard and path.read_bytes() == whole
    path.unlink()
    assert make_shard(plan, 1, read) == shard and path.read_bytes() == whole


def test_two_processes_may_make_the_same_shard_at_the_same_time(tmp_path):
    plan = plan_of(tmp_path)
    begin_store(plan)
    both = threading.Barrier(2)

    def together(start, stop, notes):
        for record in read(start, stop, notes):
            both.wait(10)
            yield record
        both.wait(10)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda i: make_shard(plan, 2, together), range(2))
    assert first == second == make_shard(plan, 2, read)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_machine_that_does_not_see_the_store_is_an_error(tmp_path):
    begin_store(plan_of(tmp_path / "here"))
    with pytest.raises(UserError, match="same path"):
        make_shard(plan_of(tmp_path / "there"), 0, read)
    with pytest.raises(UserError, match="mount the bucket"):
        begin_store(plan_of("gs://bucket/store"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"length": 24}, "length was 23 and is now 24"),
        ({"shard_size": 6}, "shard_size was 5"),
        ({"meta": {"of": "another"}}, "of was 'test' and is now 'another'"),
        ({"compression": "zstd"}, "compression"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_other_settings_are_refused(tmp_path, changed, message, complete):
    write(tmp_path, process_count=1 if complete else 2)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        write(tmp_path, **changed)
    assert contents(tmp_path) == before


def test_damage_is_found(tmp_path):
    write(tmp_path)
    paths = [tmp_path / f"shard-0000{i}.array_record" for i in range(5)]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    flipped = bytearray(paths[2].read_bytes())
    place = flipped.find(KEPT[9][:20])
    assert place > 0
    flipped[place + 5] ^= 1
    paths[2].write_bytes(flipped)
    assert [line.split(":")[0] for line in verify(tmp_path)] == [p.name for p in paths[:3]]
    store = RecordStore(tmp_path)
    for index, message in ((0, "cannot be opened"), (5, "bytes of"), (9, "00002")):
        with pytest.raises(RecordError, match=message):
            store.read(index)
    assert [store.read(i) for i in range(13, 20)] == KEPT[13:]


def test_errors(tmp_path):
    for settings, message in (
        ({"length": 0}, "at least 1"),
        ({"shard_size": 0}, "at least 1"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2"),
        ({"compression": "gzip"}, "none, zstd"),
    ):
        with pytest.raises(UserError, match=message):
            write(tmp_path, **settings)
    with pytest.raises(UserError, match="not a record store"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_manifest(tmp_path)


def test_files_of_a_job_killed_after_the_manifest_are_removed(tmp_path):
    write(tmp_path)
    expected = contents(tmp_path)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "plan.json").write_text("{}")
    write(tmp_path)
    assert contents(tmp_path) == expected


SLOW_WRITER = """
import sys, time, random
from imagen_jax.stores.writer import StorePlan, write_shards
def read(start, stop, notes):
    for position in range(start, stop):
        time.sleep(0.004)
        if position % 9:
            yield random.Random(position).randbytes(3000)
        else:
            notes["left out"] += 1
print("ready", flush=True)
write_shards(StorePlan(sys.argv[1], length=300, shard_size=20, meta={"a": 1}), read)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_job_killed_at_random_writes_the_same_store(tmp_path):
    def start(directory):
        command = [sys.executable, "-c", SLOW_WRITER, str(directory)]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    assert start(tmp_path / "whole").wait(60) == 0
    draw, kills = random.Random(5), 0
    for _ in range(100):
        process = start(tmp_path / "killed")
        assert process.stdout.readline() == b"ready\n"
        try:
            process.wait(draw.uniform(0, 0.2))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert process.returncode == 0 and kills >= 5
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
