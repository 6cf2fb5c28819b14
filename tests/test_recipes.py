"""Every file of configs/ can be built and laid out over devices; the paper's says what it says."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.config import MeshConfig, load_config
from imagen_jax.models import build_model
from imagen_jax.parallel.mesh import batch_sharding, make_mesh
from imagen_jax.planning.programs import TextShape
from imagen_jax.training.feed import abstract_batch, check_batch_size
from imagen_jax.training.optimizer import learning_rate, make_optimizer
from imagen_jax.training.state import abstract_state
from imagen_jax.training.step import make_train_step

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
T5_XXL = 4096
STAGES = [(path, name) for path in CONFIGS for name in load_config(str(path)).stages]


IDS = [f"{path.stem}-{name}" for path, name in STAGES]


def pieces(path, name):
    """Stage, model, optimizer, mesh and the shapes of the text, of a run on eight devices."""
    config = load_config(str(path))
    stage = config.stages[name]
    text = TextShape(dim=T5_XXL, max_length=config.text.max_length)
    model = build_model(
        stage.model,
        resolution=stage.resolution,
        low_res=bool(stage.low_resolution),
        text_dim=text.dim,
    )
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    return stage, model, make_optimizer(stage.train), mesh, text


@pytest.mark.parametrize("path, name", STAGES, ids=IDS)
def test_every_stage_is_built_and_sharded_without_being_run(path, name):
    stage, model, optimizer, mesh, text = pieces(path, name)
    check_batch_size(stage.train.batch_size, stage.train.accumulate, mesh, "batch_size")
    batch = abstract_batch(stage, text, mesh)
    size = stage.train.crop_size or stage.resolution
    assert batch.image.shape == (stage.train.batch_size, size, size, 3)
    assert batch.image.sharding == batch_sharding(mesh)
    state = abstract_state(model, optimizer, mesh)
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
    stage, model, optimizer, mesh, text = pieces(path, name)
    state = abstract_state(model, optimizer, mesh)
    step = make_train_step(stage, model, optimizer)
    key = jax.eval_shape(lambda: jax.random.key(0))
    new_state, metrics = jax.eval_shape(step, state, abstract_batch(stage, text, mesh), key)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (state, new_state))
    assert shapes[0] == shapes[1]
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32


def test_the_papers_config_is_the_papers():
    config = load_config("configs/imagen_paper.py")
    base, sr256, sr1024 = config.ordered_stages().values()
    assert [s.resolution for s in (base, sr256, sr1024)] == [64, 256, 1024]
    for stage in (base, sr256, sr1024):
        assert stage.train.batch_size == 2048 and stage.train.num_steps == 2_500_000
        assert stage.diffusion.prediction == "eps" and stage.diffusion.loss_weighting == "none"
        assert stage.train.text_drop_rate == 0.1 and stage.model.dropout == 0.0
        rate = learning_rate(stage.train)
        assert float(rate(9_999)) == pytest.approx(1e-4, rel=1e-3)
        assert float(rate(2_500_000)) == pytest.approx(0.0, abs=1e-12)
        assert stage.sample.percentile == 99.5
    assert [s.train.optimizer for s in (base, sr256, sr1024)] == ["adafactor", "adam", "adam"]
    assert base.train.adafactor_parameter_scale
    assert [s.diffusion.schedule for s in (base, sr256, sr1024)] == ["cosine", "cosine", "linear"]
    assert [s.sample.guidance_weight for s in (base, sr256, sr1024)] == [1.35, 8.0, 8.0]
    assert sr1024.train.crop_size == 256 and base.train.crop_size == sr256.train.crop_size == 0
