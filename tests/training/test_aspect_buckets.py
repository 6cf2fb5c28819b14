"""train.py and sample.py with aspect-ratio buckets, from a folder to pictures of both shapes."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from PIL import Image
from processes import (
    ROOT,
    SMALLEST,
    assert_same_end,
    finish,
    finish_pair,
    start,
    start_pair,
    state_of,
)

from imagen_jax.cli import sample
from imagen_jax.config import MeshConfig, load_config
from imagen_jax.data.buckets import load_stage_source
from imagen_jax.errors import UserError
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stage import open_stage
from imagen_jax.training import feed
from imagen_jax.training.flops import model_flops_per_image
from imagen_jax.training.program import TrainProgram
from imagen_jax.training.step import make_train_step

CONFIG = load_config(str(SMALLEST))
SIZES = [(20, 20), (30, 20)]
EVERY = {"validate_every": 10, "preview_every": 12}


def write(folder: Path) -> Path:
    folder.mkdir()
    for i in range(21):
        width, height = SIZES[i % 2]
        data = layouts.png(i, width=width, height=height)
        (folder / f"{i:02d}.png").write_bytes(data[:60] if i == 4 else data)
        (folder / f"{i:02d}.txt").write_text(layouts.caption(i))
    return folder


def flags_of(folder: Path) -> list[str]:
    return [
        "--config.data.source=folder",
        f"--config.data.path={folder}",
        "--config.data.aspect_buckets=('1:1','3:2')",
        "--config.data.max_bad_share=0.2",
    ]


TWO_STAGES = f"""
import dataclasses
from imagen_jax.config import load_config, to_config_dict

def get_config():
    config = load_config({str(SMALLEST)!r})
    base = config.stages["base"]
    sr = dataclasses.replace(base, resolution=16, low_resolution=8)
    return to_config_dict(dataclasses.replace(config, stages={{"base": base, "sr16": sr}}))
"""


@pytest.fixture
def source(tmp_path):
    data = dataclasses.replace(
        CONFIG.data,
        source="folder",
        path=str(write(tmp_path / "set")),
        aspect_buckets=("1:1", "3:2"),
    )
    return load_stage_source(dataclasses.replace(CONFIG, data=data), "base", "train")


def test_the_shapes_of_batches_and_what_they_cost(source):
    stage = open_stage(CONFIG, "base", 16)
    shapes = feed.picture_shapes(stage, source)
    assert shapes == [(8, 8), (6, 10)] and source.shares == (11, 10)
    flops = {shape: model_flops_per_image(stage, 8, shape) for shape in shapes}
    assert flops[8, 8] == model_flops_per_image(stage, 8)
    # By pixels, but for the text, which costs both the same.
    assert 60 / 64 < flops[6, 10] / flops[8, 8] < 1
    assert source.mean(flops) == (11 * flops[8, 8] + 10 * flops[6, 10]) / 21
    crops = open_stage(load_config(str(ROOT / "configs" / "tiny.py")), "sr16", 16)
    train = dataclasses.replace(crops.config.train, crop_size=4)
    crops = crops.replace(dataclasses.replace(crops.config, train=train))
    assert feed.picture_shapes(crops, source) == [(4, 4)]


@pytest.mark.parametrize("name", ["base", "sr16"])
def test_every_stage_steps_in_every_shape(name):
    tiny = load_config(str(ROOT / "configs" / "tiny.py"))
    data = dataclasses.replace(tiny.data, source="folder", aspect_buckets=("1:1", "3:2", "2:3"))
    stage = open_stage(dataclasses.replace(tiny, data=data), name, 16)
    program = TrainProgram(stage, make_mesh(MeshConfig(), jax.devices()[:1]), text_length=8)
    state, step = program.abstract_state, make_train_step(stage, program.optimizer)
    for shape in stage.cascade.shapes(name).values():
        batch = program.abstract_batch(shape)
        assert batch.image.shape == (stage.config.train.batch_size, *shape, 3)
        after, _ = jax.eval_shape(step, state, batch, program.abstract_key())
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


class FakeAgreement:
    """The agreement of processes with these digests."""

    def __init__(self, *others):
        self.others = others

    def gather(self, value):
        return [value, *self.others]


def test_processes_with_other_pictures_are_refused(source):
    feed.check_same_buckets([source, None], FakeAgreement([source.digest]))
    feed.check_same_buckets([None], None)
    with pytest.raises(UserError, match="process 2 has other pictures, or of other sizes"):
        feed.check_same_buckets([source], FakeAgreement([source.digest], [source.digest + 1]))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_continues_exactly_and_a_pair_does_the_same(tmp_path):
    flags = flags_of(write(tmp_path / "set"))
    whole, parts, pair = (tmp_path / name for name in ("whole", "parts", "pair"))
    output = finish(start(whole, flags=flags, devices=2, num_steps=24, **EVERY))
    assert "buckets     1:1 8x8 (11 pictures), 3:2 10x6 (10 pictures)" in output
    for number in (7, 24):
        output = finish(start(parts, flags=flags, devices=2, num_steps=number, **EVERY))
    assert "continuing from the checkpoint of step 7" in output
    for one, other in zip(state_of(whole, 24)[0], state_of(parts, 24)[0], strict=True):
        np.testing.assert_array_equal(one, other)
    finish_pair(start_pair(pair, flags=flags, num_steps=24, **EVERY))
    assert_same_end(whole, pair, 24)
    lines = (whole / "base" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["bad_items"] >= 4 and np.isfinite(last["validation_loss"])
    names = {path.name for path in (whole / "base" / "samples").iterdir()}
    assert {"00000024_samples_8x8.png", "00000024_x_hat_10x6.png"} <= names
    # Other buckets are another run.
    process = start(whole, flags=[*flags_of(tmp_path / "set")[:2], *flags[3:]], num_steps=30)
    assert "data.aspect_buckets: ['1:1', '3:2'] in the checkpoint, [] now" in finish(process, 2)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_cascade_is_trained_and_draws_both_shapes(tmp_path, capsys):
    two_stages = tmp_path / "two_stages.py"
    two_stages.write_text(TWO_STAGES)
    flags = flags_of(write(tmp_path / "set"))
    flags.append("--config.stages.sr16.train.num_steps=4")
    output = finish(start(tmp_path / "run", flags=flags, config=two_stages, num_steps=4))
    assert "1:1 16x16 (11 pictures), 3:2 20x12 (10 pictures)" in output
    for aspect, base, sr in (("1:1", (8, 8), (16, 16)), ("3:2", (10, 6), (20, 12))):
        out = tmp_path / aspect
        arguments = ["--prompts=a", "--num_images=1", "--num_steps=2", f"--out={out}"]
        assert sample.main([f"--workdir={tmp_path / 'run'}", f"--aspect={aspect}", *arguments]) == 0
        for stage, size in (("base", base), ("sr16", sr)):
            with Image.open(next((out / stage).glob("000_seed0*.png"))) as picture:
                assert picture.size == size
                assert picture.text["aspect"] == aspect
    assert sample.main([f"--workdir={tmp_path / 'run'}", "--aspect=2:3", *arguments]) == 2
    assert "only on 1:1, 3:2" in capsys.readouterr().err
