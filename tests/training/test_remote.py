"""A run's directory in a bucket: epath's own backend for gs:// on a store in memory.

Orbax writes arrays to buckets by a driver of its own, which no store in memory can stand in for.
"""

import json

import fsspec
import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend, gpath
from fsspec.implementations.memory import MemoryFileSystem

from imagen_jax.cli.train import check_workdir
from imagen_jax.config import MeshConfig, TextConfig, load_config
from imagen_jax.errors import UserError
from imagen_jax.files import absolute, is_remote, write_atomically
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stage import open_stage
from imagen_jax.text.encoder import load_encoder
from imagen_jax.training import logs, mirror
from imagen_jax.training.checkpoint import Checkpoints
from imagen_jax.training.counters import Progress, Saved
from imagen_jax.training.optimizer import make_optimizer
from imagen_jax.training.outputs import Outputs, export_ema
from imagen_jax.training.profile import Profile
from imagen_jax.training.state import init_state
from imagen_jax.weights.reading import exported_steps, load


class Bucket(MemoryFileSystem):
    """Like an object store: no appending."""

    protocol = ("gs", "gcs")
    cachable = False
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def __init__(self, **options):
        del options
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("gs://"))

    def _open(self, path, mode="rb", **options):
        if "a" in mode:
            raise NotImplementedError("nothing can be appended to")
        return super()._open(path, mode, **options)


@pytest.fixture(autouse=True)
def no_tensorflow(monkeypatch):
    """With it, epath goes through its file systems."""
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)


@pytest.fixture
def bucket(monkeypatch):
    """The path of an empty bucket."""
    Bucket.store, Bucket.pseudo_dirs = {}, [""]

    def filesystem(name: str):
        return Bucket() if name in ("gs", "gcs") else fsspec.filesystem(name)

    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", filesystem)
    path = epath.Path("gs://bucket/run")
    path.mkdir(parents=True)
    return path


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text, remote in (("gs://a/b", True), ("s3://a/b", True), ("a/b", False), ("/a", False)):
        assert is_remote(epath.Path(text)) == remote
    assert str(absolute(epath.Path("gs://a/b"))) == "gs://a/b"
    assert str(absolute(epath.Path("a/b"))) == str(tmp_path / "a" / "b")


def test_files_are_replaced_whole(bucket):
    write_atomically(bucket / "x", b"old")
    write_atomically(bucket / "x", b"new")
    assert (bucket / "x").read_bytes() == b"new"
    assert [path.name for path in bucket.iterdir()] == ["x"]


def test_a_workdir_that_is_a_file_is_refused(bucket):
    (bucket / "x").write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_workdir("gs://bucket/run/x")
    check_workdir("gs://bucket/run")
    check_workdir("gs://bucket/new")


def test_a_store_without_its_library_names_the_command(monkeypatch):
    def missing(name):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", missing)
    with pytest.raises(UserError, match="pip install gcsfs"):
        check_workdir("gs://bucket/run")


def lines(bucket) -> list[dict]:
    return [json.loads(line) for line in (bucket / "metrics.jsonl").read_text().splitlines()]


def test_the_log_goes_on_where_a_run_continues(bucket):
    log = logs.RunLog(bucket, "base", 0)
    for step in (1, 2, 3):
        log.scalars(step, {"loss": 0.5 * step})
    # Nothing is there yet: a bucket is written to now and then, and with each checkpoint.
    assert not (bucket / "metrics.jsonl").exists()
    log.sync()
    assert [line["step"] for line in lines(bucket)] == [1, 2, 3]
    log.scalars(4, {"loss": 2.0})
    log.close()
    assert [line["step"] for line in lines(bucket)] == [1, 2, 3, 4]
    # From the checkpoint of step 2: what was beyond it comes again.
    log = logs.RunLog(bucket, "base", 2)
    log.scalars(3, {"loss": 7.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in lines(bucket)] == [
        (1, 0.5),
        (2, 1.0),
        (3, 7.0),
    ]
    # Named by the second: one or two.
    events = list((bucket / "tensorboard").iterdir())
    assert events and all(path.stat().length > 100 for path in events)


def test_the_log_is_sent_after_a_while(bucket, monkeypatch):
    monkeypatch.setattr(mirror, "UPLOAD_SECONDS", 0.0)
    log = logs.RunLog(bucket, "base", 0)
    log.scalars(1, {"loss": 1.0})
    assert [line["step"] for line in lines(bucket)] == [1]
    log.close()


def test_a_profile_is_copied_to_a_bucket(bucket):
    lines = []
    profile = Profile((1, 1), bucket / "profile", lines.append)
    with profile.step(5):
        result = jax.jit(lambda x: 2 * x)(np.ones(3))
    profile.dispatched(result)
    names = [name for _, _, names in (bucket / "profile").walk() for name in names]
    assert len([name for name in names if name.endswith(".trace.json.gz")]) == 1
    assert lines == ["profile of 1:1 written to gs://bucket/run/profile"]
    # The local copy is removed.
    assert not profile._mirror.local.exists()


def test_weights_and_pictures_in_a_bucket(bucket):
    from pathlib import Path

    config = load_config(str(Path(__file__).parent / "smallest_config.py"))
    encoder = load_encoder(TextConfig(max_length=8))
    stage = open_stage(config, "base", encoder.dim)
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    optimizer = make_optimizer(stage.config.train)
    state = init_state(stage.network, optimizer, mesh, jax.random.key(0))
    for step in (3, 6):
        progress = Progress(examples_seen=step * 4)
        state = state.replace(ema_params=jax.tree.map(lambda x: x + 1, state.ema_params))
        saved = Saved(step=step, state=state, progress=progress)
        export_ema(bucket / "base", stage, encoder, mesh, saved)
        assert exported_steps(bucket / "base" / "ema", "base") == step
    loaded = load(str(bucket)).stages["base"]
    jax.tree.map(np.testing.assert_array_equal, loaded.params, jax.device_get(state.ema_params))
    # One file of weights: the older one is gone.
    assert len([p for p in (bucket / "base" / "ema").iterdir() if p.suffix == ".safetensors"]) == 1

    outputs = Outputs(bucket / "base", stage, encoder, mesh, Checkpoints(bucket / "c", 1), {}, 0)
    outputs.pictures(1, {"samples": np.zeros((8, 8, 3), np.uint8)})
    outputs.close()
    [picture] = (bucket / "base" / "samples").iterdir()
    assert picture.name == "00000001_samples.png" and picture.read_bytes()[1:4] == b"PNG"


def test_damaged_checkpoints_are_moved_aside_in_a_bucket(bucket):
    for step in (2, 4):
        place = bucket / "checkpoints" / str(step)
        place.mkdir(parents=True)
        (place / "array").write_bytes(b"x")
    checkpoints = Checkpoints(bucket / "checkpoints", 3)
    assert checkpoints.steps == [4, 2]
    moved = checkpoints.set_aside(4)
    assert str(moved) == "gs://bucket/run/damaged/4" and (moved / "array").read_bytes() == b"x"
    assert checkpoints.steps == [2]
    (bucket / "checkpoints" / "4").mkdir()
    (bucket / "checkpoints" / "4" / "array").write_bytes(b"y")
    assert str(checkpoints.set_aside(4)) == "gs://bucket/run/damaged/4_2"


def test_the_fake_cannot_be_appended_to(bucket):
    with pytest.raises(NotImplementedError):
        (bucket / "x").open("a")
