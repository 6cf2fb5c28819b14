"""Every file of configs/ can be built and laid out over devices; the paper's says what it says."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.config import MeshConfig, load_config
from imagen_jax.diffusion.losses import Unweighted
from imagen_jax.diffusion.schedules import Cosine, Linear
from imagen_jax.diffusion.thresholding import DynamicThreshold
from imagen_jax.optimizers import Adafactor, Adam
from imagen_jax.parallel.mesh import batch_sharding, make_mesh
from imagen_jax.stage import open_stage
from imagen_jax.training.optimizer import learning_rate
from imagen_jax.training.program import TrainProgram
from imagen_jax.training.step import make_train_step

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
T5_XXL = 4096
STAGES = [(path, name) for path in CONFIGS for name in load_config(str(path)).stages]


IDS = [f"{path.stem}-{name}" for path, name in STAGES]


def program_of(path, name) -> TrainProgram:
    """The train step of a stage on eight devices."""
    config = load_config(str(path))
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    return TrainProgram(open_stage(config, name, T5_XXL), mesh, config.text.max_length)


@pytest.mark.parametrize("path, name", STAGES, ids=IDS)
def test_every_stage_is_built_and_sharded_without_being_run(path, name):
    program = program_of(path, name)
    batch, config = program.abstract_batch(), program.stage.config
    size = config.train.crop_size or config.resolution
    assert batch.image.shape == (config.train.batch_size, size, size, 3)
    assert batch.image.sharding == batch_sharding(program.mesh)
    state = program.abstract_state
    for params in (state.params, state.ema_params):
        leaves = jax.tree.leaves(params)
        whole = sum(leaf.size for leaf in leaves)
        part = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
        # Of a large network nearly all is cut in four.
        assert whole / 4 <= part < (0.26 if whole > 2e7 else 1.0) * whole


PAPER = [item for item in STAGES if item[0].stem.startswith("imagen")]


@pytest.mark.slow
@pytest.mark.parametrize("path, name", PAPER, ids=[i for i in IDS if i.startswith("imagen")])
def test_the_step_of_the_large_stages_can_be_traced(path, name):
    program = program_of(path, name)
    state, step = program.abstract_state, make_train_step(program.stage, program.optimizer)
    new_state, metrics = jax.eval_shape(
        step, state, program.abstract_batch(), program.abstract_key()
    )
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (state, new_state))
    assert shapes[0] == shapes[1]
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32


def test_the_papers_config_is_the_papers():
    config = load_config("configs/imagen_paper.py")
    base, sr256, sr1024 = config.ordered_stages().values()
    assert [s.resolution for s in (base, sr256, sr1024)] == [64, 256, 1024]
    for stage in (base, sr256, sr1024):
        assert stage.train.batch_size == 2048 and stage.train.num_steps == 2_500_000
        assert (
            stage.diffusion.prediction == "eps" and stage.diffusion.loss_weighting == Unweighted()
        )
        assert stage.train.text_drop_rate == 0.1 and stage.model.dropout == 0.0
        rate = learning_rate(stage.train)
        assert float(rate(9_999)) == pytest.approx(1e-4, rel=1e-3)
        assert float(rate(2_500_000)) == pytest.approx(0.0, abs=1e-12)
        assert stage.sample.threshold == DynamicThreshold(percentile=99.5)
    optimizers = [s.train.optimizer for s in (base, sr256, sr1024)]
    assert optimizers == [Adafactor(parameter_scale=True), Adam(b2=0.999), Adam(b2=0.999)]
    assert [s.diffusion.schedule for s in (base, sr256, sr1024)] == [Cosine(), Cosine(), Linear()]
    assert [s.sample.guidance.weight for s in (base, sr256, sr1024)] == [1.35, 8.0, 8.0]
    assert sr1024.train.crop_size == 256 and base.train.crop_size == sr256.train.crop_size == 0
