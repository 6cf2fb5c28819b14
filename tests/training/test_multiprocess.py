"""Two real processes on gloo are one job: the same data, the same numbers, a common end.

With two devices a gradient is a sum of two addends, whose order does not matter, so runs on two
devices agree bit for bit. On another number of devices sums are rounded differently.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import (
    RECORDED,
    ROOT,
    TIMEOUT,
    assert_same_end,
    finish,
    finish_pair,
    joined,
    kill,
    records,
    start,
    start_pair,
    state_of,
    wait_until,
)

from imagen_jax.config import TextConfig
from imagen_jax.data.formats.array_record import CONTENT, encode_record
from imagen_jax.data.records import Record
from imagen_jax.parallel.distributed import HEARTBEAT_SECONDS
from imagen_jax.stores.writer import StorePlan, write_shards
from imagen_jax.text.encoder import load_encoder
from imagen_jax.training.goodput import ACTIVITIES, STEP

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

STEPS = 24
EVERY = {"log_every": 4, "save_every": 6, "validate_every": 10, "preview_every": 8}


BATCH = 4
# Each of them has three captions.
PICTURES = [
    (color, size) for color in ("red", "green", "blue", "yellow", "purple") for size in "ab"
]
SHAPES = ("circle", "square", "triangle")


def captions_of(picture: int) -> list[str]:
    color, size = PICTURES[picture]
    return [f"a {'small' if size == 'a' else 'large'} {color} {shape}" for shape in SHAPES]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    """Flags of distinct pictures: number i has the value 20 i, and 10 more in its left half."""
    directory = tmp_path_factory.mktemp("data") / "pictures"

    def encoded(i: int) -> bytes:
        image = np.full((8, 8, 3), 20 * i, np.uint8)
        image[:, :4] += 10
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        return encode_record(Record(str(i), file.getvalue(), tuple(captions_of(i))))

    plan = StorePlan(str(directory), len(PICTURES), len(PICTURES), {"content": CONTENT})
    write_shards(plan, lambda first, last, notes: [encoded(i) for i in range(first, last)])
    return [
        "--config.data.source=array_record",
        f"--config.data.path={directory}",
        "--config.data.flip=True",
    ]


@pytest.fixture(scope="module")
def uninterrupted(pictures, tmp_path_factory) -> Path:
    """The run of a pair without interruptions."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    pair = start_pair(workdir, flags=pictures, script=RECORDED, num_steps=STEPS, **EVERY)
    main, other = finish_pair(pair)
    assert "2 x cpu" in main and "2 process(es)" in main
    # Only process 0 prints and logs.
    assert "Stage base" not in other and "step/s" not in other
    assert len(list((workdir / "base" / "tensorboard").iterdir())) == 1
    return workdir


def steps_saved(workdir: Path) -> list[int]:
    """The finished checkpoints: one that is still being written has a longer name."""
    directory = workdir / "base" / "checkpoints"
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def logged(workdir: Path) -> int:
    return max((record["step"] for record in records(workdir)), default=0)


def assert_close_end(expected: Path, actual: Path) -> None:
    """Losses and weights differ by rounding alone."""
    (want, want_progress), (have, have_progress) = (
        state_of(workdir, STEPS) for workdir in (expected, actual)
    )
    assert have_progress.examples_seen == want_progress.examples_seen
    # Adam moves a weight by up to the rate (1e-3) a step. Where a gradient is near zero its
    # direction is rounding; 24 steps of a fiftieth of that. Another item changes them by 1e-3.
    for one, other in zip(want, have, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=24 * 2e-5)
    # The ends of the parts of a run are validated, too.
    of_step = {record["step"]: record for record in records(actual)}
    for one in records(expected):
        other = of_step[one["step"]]
        assert other.get("images_seen") == one.get("images_seen")
        for name in {"loss", "validation_loss"} & one.keys():
            # f32 sums in another order: 1e-6 relative a step, some growth. One other item, time
            # or noise in the four steps of a line changes it by 1e-2.
            np.testing.assert_allclose(other[name], one[name], rtol=1e-5)


def fed(workdir: Path) -> list[tuple[int, bool, int]]:
    """The items of a run's batches, in order: picture, whether mirrored, number of the caption."""
    encoder = load_encoder(TextConfig(max_length=8))
    encoded = [
        np.asarray(encoder.encode_captions(captions_of(i)).tokens) for i in range(len(PICTURES))
    ]
    known = np.stack(encoded).reshape(len(PICTURES) * len(SHAPES), -1)
    items = []
    for step in range(STEPS):
        rows = {}
        for file in (workdir / "fed").glob(f"{step}.*.npz"):
            with np.load(file) as arrays:
                found = [*zip(*(arrays[name] for name in ("image", "tokens")), strict=True)]
                rows |= dict(zip(arrays["rows"].tolist(), found, strict=True))
        assert sorted(rows) == list(range(BATCH))
        for row in range(BATCH):
            image, tokens = rows[row]
            picture, left = divmod(int(image[0, 0, 0]), 20)
            expected = np.full((8, 8, 3), 20 * picture, np.uint8)
            expected[:, slice(0, 4) if left else slice(4, 8)] += 10
            np.testing.assert_array_equal(image, expected)
            distance = np.abs(known - tokens.reshape(-1)).max(1)
            nearest = int(distance.argmin())
            # Another number of devices rounds differently; two captions are 2 apart.
            assert distance[nearest] < 1e-4 < 0.1 < np.partition(distance, 1)[1]
            of, caption = divmod(nearest, len(SHAPES))
            assert of == picture, "a picture with the caption of another"
            items.append((picture, not left, caption))
    return items


def test_a_pair_is_fed_whole_epochs_with_all_captions(uninterrupted):
    items = fed(uninterrupted)
    number = len(PICTURES)
    orders = [[item[0] for item in items[i : i + number]] for i in range(0, len(items), number)]
    whole = [order for order in orders if len(order) == number]
    assert len(whole) == 9 and all(sorted(order) == list(range(number)) for order in whole)
    assert len(set(map(tuple, whole))) == 9
    # Each of the pictures was seen nine times or ten.
    assert {(picture, caption) for picture, _, caption in items} == {
        (picture, caption) for picture in range(number) for caption in range(len(SHAPES))
    }
    assert 0.3 < np.mean([mirrored for _, mirrored, _ in items]) < 0.7


def test_the_log_says_where_the_time_went_and_what_it_was_used_for(uninterrupted):
    lines = (uninterrupted / "base" / "metrics.jsonl").read_text().splitlines()
    lines = [line for line in map(json.loads, lines) if "loss" in line]
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 24]
    for line in lines:
        shares = line["goodput"]
        assert shares.keys() == {STEP, *ACTIVITIES} and min(shares.values()) >= 0
        assert sum(shares.values()) == pytest.approx(1)
        # Two devices; the peak of a CPU is unknown.
        rate = line["model_flops_per_image"] * line["images_per_second"] / 2
        assert line["model_flops_per_second_per_device"] == pytest.approx(rate)
        assert rate > 0 and "mfu" not in line
    # By the end everything has happened once.
    assert min(lines[-1]["goodput"].values()) > 0


def test_a_pair_does_what_one_process_with_two_devices_does(pictures, uninterrupted, tmp_path):
    finish(start(tmp_path, devices=2, flags=pictures, num_steps=STEPS, **EVERY))
    assert_same_end(tmp_path, uninterrupted, STEPS)
    for file in sorted((tmp_path / "base" / "samples").iterdir()):
        assert file.read_bytes() == (uninterrupted / "base" / "samples" / file.name).read_bytes()


def test_a_dead_process_ends_the_other_and_the_pair_continues(pictures, uninterrupted, tmp_path):
    pair = start_pair(tmp_path, flags=pictures, num_steps=STEPS, **EVERY)
    # After a checkpoint, which is written while the steps continue.
    wait_until(lambda: logged(tmp_path) >= 8 and steps_saved(tmp_path), pair[0])
    kill(pair[1])
    killed = time.monotonic()
    output, _ = pair[0].communicate(timeout=TIMEOUT)
    # Noticed by JAX's heartbeats or by gloo's connection.
    assert pair[0].returncode not in (0, None)
    assert "another task died" in output or "has lost another one" in output
    assert "most recent call first" not in output
    assert time.monotonic() - killed < HEARTBEAT_SECONDS + 30

    main, _ = finish_pair(start_pair(tmp_path, flags=pictures, num_steps=STEPS, **EVERY))
    assert "continuing from the checkpoint of step" in main
    assert_same_end(uninterrupted, tmp_path, STEPS)


@pytest.mark.parametrize("receiver", [0, 1])
def test_sigterm_at_one_saves_both(pictures, uninterrupted, tmp_path, receiver):
    pair = start_pair(tmp_path, flags=pictures, num_steps=STEPS, **EVERY | {"save_every": 1000})
    wait_until(lambda: logged(tmp_path) >= 4, pair[0])
    pair[receiver].send_signal(signal.SIGTERM)
    main, other = finish_pair(pair)
    assert "Stopped by SIGTERM" in main and "Stopped by" not in other
    # One checkpoint, of the step where both stopped.
    [saved] = steps_saved(tmp_path)
    assert 4 <= saved < STEPS

    finish_pair(start_pair(tmp_path, flags=pictures, num_steps=STEPS, **EVERY))
    assert_same_end(uninterrupted, tmp_path, STEPS)


def test_sigterm_at_one_while_compiling_ends_both(tmp_path):
    # An empty cache, so that the compiler has to work for some seconds.
    pair = start_pair(tmp_path / "run", cache=tmp_path / "cache", num_steps=8)
    while "held out" not in (line := pair[0].stdout.readline()):
        assert line, "the process ended"
    pair[1].send_signal(signal.SIGTERM)
    # Nothing could be saved, which a scheduler must not take for success.
    main, _ = (finish(process, status=128 + signal.SIGTERM) for process in pair)
    assert "compiled" not in main and "Stopped by SIGTERM before the first step" in main


def test_a_checkpoint_of_a_pair_continues_on_one_and_on_four_devices_and_back(
    pictures, uninterrupted, tmp_path
):
    recorded = {"script": RECORDED, **EVERY}
    half = tmp_path / "half"
    finish_pair(start_pair(half, flags=pictures, num_steps=12, **recorded))
    alone, four = tmp_path / "alone", tmp_path / "four"
    for copy in (alone, four):
        shutil.copytree(half, copy)

    output = finish(start(alone, flags=pictures, num_steps=STEPS, **recorded))
    assert "continuing from the checkpoint of step 12" in output
    assert_close_end(uninterrupted, alone)

    flags = [*pictures, "--config.mesh.data=2", "--config.mesh.fsdp=2"]
    output = finish(start(four, devices=4, flags=flags, num_steps=16, **recorded))
    assert "data 2 x fsdp 2" in output and "continuing from the checkpoint of step 12" in output
    main, _ = finish_pair(start_pair(four, flags=pictures, num_steps=STEPS, **recorded))
    assert "continuing from the checkpoint of step 16" in main
    assert_close_end(uninterrupted, four)

    assert fed(uninterrupted) == fed(alone) == fed(four)


def test_processes_with_other_settings_are_refused(tmp_path):
    first, second = joined(2)
    pair = [
        start(tmp_path, flags=first, num_steps=8),
        start(tmp_path, flags=second, num_steps=9),
    ]
    for process in pair:
        output = finish(process, status=2)
        assert "stages.base.train.num_steps; give all processes the same command" in output


@pytest.mark.parametrize("task", ["rows", "agreement", "damage"])
def test_exchange_between_two_processes(task, tmp_path):
    worker = Path(__file__).parent / "pair_worker.py"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "PYTHONPATH": str(ROOT),
    }
    pair = [
        subprocess.Popen(
            [sys.executable, str(worker), f"--task={task}", f"--directory={tmp_path}", *flags],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for flags in joined(2)
    ]
    for output in finish_pair(pair):
        assert f"{task} is right" in output
