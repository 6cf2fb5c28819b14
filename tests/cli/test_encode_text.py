"""The command that stores embeddings: killed, on a full disk, with wrong input; then trained on."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
SMALLEST = ROOT / "tests" / "training" / "smallest_config.py"
ITEMS = 600  # and 6 held-out ones: 38 shards


def start(out, *flags, file_limit=None, config=SMALLEST):
    """Starts the command; no file of it may exceed `file_limit` bytes."""

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false" if file_limit else "true",
    }
    command = [
        sys.executable, "-m", "imagen_jax.cli.encode_text", f"--config={config}", f"--out={out}",
        f"--num_items={ITEMS}", "--shard_size=16", "--batch_size=8", *flags,
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=limit_files if file_limit else None,
    )


def finish(process, status=0):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == status, output
    assert "Traceback" not in output, output
    return output


def contents(directory):
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stores") / "undisturbed"
    output = finish(start(directory))
    assert "train" in output and "bytes, " in output and "606 of 606 items" in output
    return directory


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_ten_times_it_ends_with_the_same_bytes(store, tmp_path):
    out, rng, went_on = tmp_path / "store", random.Random(0), 0
    for _ in range(10):
        process = start(out)
        before = len(list(out.glob("unfinished/shard*.json")))
        # Some die while they start, some between two shards or within one.
        wanted = before + rng.choice((0, 1, 1, 2, 2))
        deadline = time.monotonic() + 600
        while len(list(out.glob("unfinished/shard*.json"))) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        went_on += len(list(out.glob("unfinished/shard*.json"))) > before
    assert went_on >= 5
    assert not (out / "manifest.json").exists()
    assert "were done before" in finish(start(out))
    assert contents(out) == contents(store)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_full_disk_is_one_message_and_the_same_command_goes_on(store, tmp_path):
    out = tmp_path / "store"
    output = finish(start(out, file_limit=30_000), status=2)
    assert output.count("\nerror:") == 1 and "no space is left to write to" in output
    assert not (out / "manifest.json").exists() and not list(out.glob(".*.tmp"))
    finish(start(out))
    assert contents(out) == contents(store)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_at_once_make_the_same_store(store, tmp_path):
    out = tmp_path / "store"
    both = [start(out, "--num_processes=2", f"--process_id={index}") for index in range(2)]
    outputs = [finish(process) for process in both]
    assert any("bytes, " in output for output in outputs)
    assert contents(out) == contents(store)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_wrong_input_is_one_message(store, tmp_path):
    for flags, message in (
        (("--dtype=float16",), "--dtype=float16 must be one of float32, bfloat16, int8"),
        (("--batch_size=0",), "--batch_size=0 must be a positive integer"),
        (("--shard_size=0",), "--shard_size=0 must be a positive integer"),
        (("--process_id=1",), "--num_processes and --process_id belong together"),
        (("--config.text.encoder=/nowhere",), "text.encoder is '/nowhere'"),
        ((f"--out={store}", "--config.text.max_length=9"), "max_length was 8 and is now 9"),
        ((f"--out={store}", "--dtype=int8"), "dtype was 'float32' and is now 'int8'"),
        (("--verify",), "is not a record store"),
    ):
        output = finish(start(tmp_path / "new", *flags), status=2)
        assert output.splitlines()[-1].startswith("error: ") and message in output, output
    assert "shards are whole" in finish(start(store, "--verify"))


def train(workdir, *flags, steps=24):
    """Starts train.py."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), f"--config={SMALLEST}",
         f"--workdir={workdir}", f"--config.stages.base.train.num_steps={steps}",
         "--config.stages.base.train.validate_every=12", *flags],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
                          "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def same_end(workdir, other, steps):
    """Asserts that two runs left the same state, bit for bit, and the same records."""
    sys.path.insert(0, str(ROOT / "tests" / "training"))
    import processes

    (want, progress), (have, other_progress) = (
        processes.state_of(one, steps) for one in (workdir, other)
    )
    for one, another in zip(want, have, strict=True):
        np.testing.assert_array_equal(one, another)
    assert progress == other_progress
    records = processes.records(workdir)
    assert records == processes.records(other)
    assert any("validation_loss" in record for record in records)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_training_on_the_store_ends_as_training_with_the_encoder(store, tmp_path):
    # Batches of the training step's size: the last bits depend on shapes.
    exact = tmp_path / "store"
    # No more than the 24 steps read.
    finish(start(exact, "--batch_size=4", "--num_items=96"))
    stored = f"--config.data.embeddings={exact}"
    finish(train(tmp_path / "online"))
    finish(train(tmp_path / "stored", stored))
    same_end(tmp_path / "online", tmp_path / "stored", 24)

    for flags, message in (
        ((stored, "--config.text.max_length=9"), "config.text.max_length: 8 in the store, 9 now"),
        ((stored, "--config.stages.base.train.num_steps=25"), "but 25 steps read 100"),
    ):
        output = finish(train(tmp_path / "new", *flags), status=2)
        assert message in output, output
        assert not list((tmp_path / "new").rglob("checkpoints/*"))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_store_has_all_the_captions_that_training_may_draw(tmp_path):
    """Of pictures with three captions each, of which 12 steps draw most."""
    sys.path.insert(0, str(ROOT / "tests" / "data"))
    import layouts

    files, phrases = [], ("a {} square", "picture {}", "number {} of a set, in one colour")
    for number in range(20):
        captions = json.dumps({"captions": [phrase.format(number) for phrase in phrases]})
        files.append((f"{number:03d}.png", layouts.png(number)))
        files.append((f"{number:03d}.json", captions.encode()))
    tar = tmp_path / "data" / "00000.tar"
    layouts.write_tar(tar, files)
    data = ("--config.data.source=webdataset", f"--config.data.path={tar.parent}")
    output = finish(start(tmp_path / "store", "--batch_size=4", *data))
    # Of so few pictures none is held out: they are validated on too.
    assert "\n120 captions of 40 items" in output, output
    finish(train(tmp_path / "online", *data, steps=12))
    stored = f"--config.data.embeddings={tmp_path / 'store'}"
    finish(train(tmp_path / "stored", *data, stored, steps=12))
    same_end(tmp_path / "online", tmp_path / "stored", 12)
