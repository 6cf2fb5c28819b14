"""Resuming: damaged checkpoints are passed over, other settings are refused."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_checkpoint import abstract, state_on

from imagen_jax.config import (
    CascadeConfig,
    DataConfig,
    MeshConfig,
    MixConfig,
    SampleConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
    to_json_dict,
)
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.errors import UserError
from imagen_jax.models import EfficientUNetConfig
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stage import open_stage
from imagen_jax.training.checkpoint import Checkpoints, RunInfo
from imagen_jax.training.counters import Progress
from imagen_jax.training.resume import (
    check_same_data,
    check_same_run,
    check_same_settings,
    finished_step,
    newest_good,
)

ENCODER = SimpleNamespace(identity="e", tokenizer_hash="t")


def cascade(**stage) -> CascadeConfig:
    base = StageConfig(resolution=32, **stage)
    other = StageConfig(resolution=64, low_resolution=32)
    return CascadeConfig(name="x", stages={"base": base, "sr": other})


def save(directory, step: int) -> None:
    checkpoints = Checkpoints(directory / "checkpoints", 3)
    progress = Progress(examples_seen=step)
    info = RunInfo(config=to_json_dict(cascade()), encoder="e", progress=progress)
    checkpoints.save(step, state_on(make_mesh(MeshConfig()), step), info)
    checkpoints.close()


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    for step in (3, 5, 8):
        save(directory, step)
    return directory


@pytest.fixture
def run(whole_run, tmp_path):
    """The directory of a run with checkpoints of the steps 3, 5 and 8."""
    return shutil.copytree(whole_run, tmp_path / "run")


def steps(directory) -> list[int]:
    return Checkpoints(directory / "checkpoints", 3).steps


def newest(directory):
    """What is restored, and the printed lines."""
    checkpoints = Checkpoints(directory / "checkpoints", 3)
    mesh = make_mesh(MeshConfig())
    lines = []
    found = newest_good(
        checkpoints,
        abstract(state_on(mesh, 0), mesh),
        open_stage(cascade(), "base", 4),
        ENCODER,
        {},
        lines.append,
    )
    return found, lines


def largest_file(directory):
    return max(directory.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())


def truncate_array(checkpoint):
    file = largest_file(checkpoint)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bit(checkpoint):
    file = largest_file(checkpoint)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 16
    file.write_bytes(data)


def delete_array(checkpoint):
    largest_file(checkpoint).unlink()


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def garble_info(checkpoint):
    (checkpoint / "_CHECKPOINT_METADATA").write_text('{"custom_metadata": {"conf')


def change_a_number(checkpoint):
    file = checkpoint / "_CHECKPOINT_METADATA"
    assert '"examples_seen": 8' in file.read_text()
    file.write_text(file.read_text().replace('"examples_seen": 8', '"examples_seen": 9'))


def garble_unknown_key(checkpoint):
    file = checkpoint / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace("init_timestamp", "hnit_timestamp"))


def garble_tree(checkpoint):
    (checkpoint / "state" / "_METADATA").write_bytes(b"\0" * 100)


def delete_manifest(checkpoint):
    (checkpoint / "state" / "manifest.ocdbt").unlink()


DAMAGES = [
    truncate_array,
    flip_bit,
    delete_array,
    empty,
    garble_info,
    change_a_number,
    garble_unknown_key,
    garble_tree,
    delete_manifest,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_kept(run, damage):
    newest_checkpoint = run / "checkpoints" / "8"
    damage(newest_checkpoint)
    content = sorted(path.name for path in newest_checkpoint.rglob("*"))
    found, lines = newest(run)
    assert found.step == found.progress.examples_seen == 5
    want = state_on(make_mesh(MeshConfig()), 5)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found.state), jax.device_get(want))
    [line] = lines
    assert "step 8" in line and str(run / "damaged" / "8") in line
    assert sorted(path.name for path in (run / "damaged" / "8").rglob("*")) == content


def test_a_step_that_was_set_aside_is_saved_again_and_may_be_damaged_again(run):
    empty(run / "checkpoints" / "8")
    newest(run)
    save(run, 8)
    assert steps(run) == [8, 5, 3]
    assert newest(run)[0].step == 8
    empty(run / "checkpoints" / "8")
    assert newest(run)[0].step == 5
    assert (run / "damaged" / "8_2").is_dir()


def test_an_older_damaged_checkpoint_does_not_stop_later_saves(run):
    garble_unknown_key(run / "checkpoints" / "3")
    assert newest(run)[0].step == 8
    save(run, 9)
    assert steps(run) == [9, 8, 5]


def test_if_all_are_damaged_nothing_is_touched(run):
    for step, damage in zip((3, 5, 8), (flip_bit, empty, delete_array), strict=True):
        damage(run / "checkpoints" / str(step))
    with pytest.raises(UserError, match="Nothing was changed") as error:
        newest(run)
    assert all(f"step {step}" in str(error.value) for step in (3, 5, 8))
    assert steps(run) == [8, 5, 3]
    assert [path.name for path in run.iterdir()] == ["checkpoints"]


def test_no_checkpoint_at_all_is_a_new_run(tmp_path):
    found, lines = newest(tmp_path)
    assert found is None and not lines


def test_a_run_is_finished_once_its_newest_checkpoint_says_so(run):
    checkpoints = Checkpoints(run / "checkpoints", 3)

    def finished(num_steps):
        stage = open_stage(cascade(train=TrainConfig(num_steps=num_steps)), "base", 4)
        return finished_step(checkpoints, stage, ENCODER)

    assert [finished(n) for n in (5, 8, 9)] == [8, 8, None]
    garble_info(run / "checkpoints" / "8")
    assert finished(8) is None


@pytest.mark.parametrize(
    "config",
    [
        cascade(train=TrainConfig(num_steps=5, batch_size=7, save_every=2, validate_every=7)),
        cascade(sample=SampleConfig(guidance=Guidance(9.0))),
        dataclasses.replace(cascade(), mesh=MeshConfig(fsdp=4)),
        dataclasses.replace(
            cascade(),
            stages=cascade().stages | {"sr": StageConfig(resolution=128, low_resolution=32)},
        ),
    ],
)
def test_harmless_changes_are_accepted(config):
    check_same_run(to_json_dict(cascade()), config, "base")


def test_a_checkpoint_from_before_a_setting_existed_has_its_default():
    saved = to_json_dict(cascade())
    del saved["stages"]["base"]["model"]["patch_size"]
    check_same_run(saved, cascade(), "base")
    saved["stages"]["base"]["model"]["patch_size"] = 2
    with pytest.raises(UserError, match="patch_size: 2 in the checkpoint, 1 now"):
        check_same_run(saved, cascade(), "base")


@pytest.mark.parametrize(
    "config, difference",
    [
        (cascade(train=TrainConfig(learning_rate=0.5)), "train.learning_rate: 0.0001 in the"),
        (
            cascade(model=EfficientUNetConfig(head_dim=32)),
            "model.head_dim: 64 in the checkpoint, 32 now",
        ),
        (dataclasses.replace(cascade(), seed=3), "seed: 0 in the checkpoint, 3 now"),
    ],
)
def test_changes_that_make_another_run_are_refused(config, difference):
    with pytest.raises(UserError, match=difference):
        check_same_run(to_json_dict(cascade()), config, "base")


def test_arrays_are_compared_by_value_not_by_python_type():
    saved = to_json_dict(cascade())
    assert isinstance(saved["stages"]["base"]["model"]["channels"], list)
    check_same_run(saved, cascade(), "base")


def test_a_checkpoint_from_before_a_setting_existed_is_continued():
    saved = to_json_dict(cascade())
    for key in ("max_skipped_steps", "validate_every", "validation_images"):
        del saved["stages"]["base"]["train"][key]
    check_same_run(saved, cascade(), "base")


def test_a_moved_encoder_and_moved_pictures_are_accepted():
    # Their hash and their identity are compared instead.
    mix = {"a": MixConfig(source="folder", path="old")}
    saved = dataclasses.replace(cascade(), data=DataConfig(source="mix", mix=mix))
    moved = dataclasses.replace(
        saved,
        text=TextConfig(encoder="/new/place/t5"),
        data=DataConfig(source="mix", mix={"a": dataclasses.replace(mix["a"], path="new")}),
    )
    check_same_run(to_json_dict(saved), moved, "base")
    info = RunInfo(config=to_json_dict(saved), encoder="e", tokenizer="t", progress=Progress())
    stage = open_stage(moved, "base", 4)
    check_same_settings(info, stage, ENCODER)
    for other, words in (({"encoder": "x"}, "text encoder x"), ({"tokenizer": "y"}, "tokenizer y")):
        with pytest.raises(UserError, match=f"{words}.*/new/place/t5"):
            check_same_settings(dataclasses.replace(info, **other), stage, ENCODER)
    # A checkpoint from before tokenizers were saved.
    check_same_settings(dataclasses.replace(info, tokenizer=""), stage, ENCODER)


SET = [{"pictures": 1200, "digest": "3f" * 32}]
SMALLER = [{"pictures": 1199, "digest": "a7" * 32}]


def compared(saved, now, if_changed="refuse") -> list[str]:
    lines = []
    data = DataConfig(source="folder", path="pictures", if_changed=if_changed)
    stage = open_stage(dataclasses.replace(cascade(), data=data), "base", 4)
    check_same_data(saved, now, stage, lines.append)
    return lines


def test_changed_pictures_are_refused_or_warned_of():
    saved, now = {"train": SET, "held_out": SET}, {"train": SMALLER, "held_out": SET}
    change = (
        r"train: 1,200 pictures \(3f3f3f3f\) in the checkpoint, 1,199 pictures \(a7a7a7a7\) now"
    )
    with pytest.raises(
        UserError, match=rf"'pictures' are not(.|\n)*{change}(.|\n)*if_changed=warn"
    ):
        compared(saved, now)
    [line] = compared(saved, now, "warn")
    assert line.startswith("warning") and "1,199 pictures" in line and "held_out" not in line


@pytest.mark.parametrize(
    "saved, now",
    [
        ({"train": SET}, {"train": SET, "held_out": SMALLER}),  # validation was switched on
        ({}, {"train": SET}),  # an older checkpoint
        ({"train": SET, "held_out": SET}, {"train": SET}),
    ],
)
def test_only_what_both_have_read_is_compared(saved, now):
    assert compared(saved, now) == []
