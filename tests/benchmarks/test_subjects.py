"""The programs that are timed: they run, and the networks compared are as equal as docs say."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import graphs, imagen_pytorch_peer, ours
from benchmarks.flops import matrix_flops
from benchmarks.measure import DENOISE, TRAIN
from imagen_jax.config import ModelConfig, StageConfig, TrainConfig
from imagen_jax.models import apply_model, init_params, project_text
from imagen_jax.types import TextCond

TEXT_LENGTH, TEXT_DIM = 6, 16


def tiny_stage(low_resolution: int = 0, model: ModelConfig | None = None) -> StageConfig:
    model = model or ModelConfig(
        channels=(8, 16),
        num_res_blocks=(1, 1),
        strides=(2, 2),
        self_attention=(False, True),
        text_attention=("none", "joint"),
        head_dim=16,
    )
    return StageConfig(
        resolution=16,
        low_resolution=low_resolution,
        model=model,
        train=TrainConfig(batch_size=4, learning_rate=1e-3, warmup_steps=0),
    )


def size_and_flops(model, text_length: int = TEXT_LENGTH) -> tuple[int, int]:
    """Parameters and forward operations of one picture."""

    def leaf(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    def forward(params, z, level, text):
        condition = {"low_res": z, "aug_level": level} if model.low_res else {}
        features = project_text(model, params, text)
        return apply_model(model, params, z, level, features, **condition)

    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    text = TextCond(
        tokens=leaf(1, text_length, model.text_dim), mask=leaf(1, text_length, dtype=jnp.bool_)
    )
    side = model.resolution
    flops = matrix_flops(forward, params, leaf(1, side, side, 3), leaf(1), text)
    return sum(x.size for x in jax.tree.leaves(params)), flops


@pytest.mark.slow
def test_our_programs_run_and_their_facts_agree():
    small = ModelConfig(  # joint attention at its only level: compiled twice, it has to be tiny
        channels=(16,),
        num_res_blocks=(1,),
        strides=(2,),
        self_attention=(True,),
        text_attention=("joint",),
        head_dim=16,
    )
    stage = tiny_stage(low_resolution=8, model=small)
    subject = ours.build(ours.stage_network, stage, TEXT_LENGTH, TEXT_DIM, 3)
    parameters, forward = size_and_flops(ours.stage_network(stage, TEXT_DIM))
    assert subject.parameters == parameters
    for name in (TRAIN, DENOISE):
        subject.programs[name].run(2)
    train, denoise = (subject.programs[name].facts for name in (TRAIN, DENOISE))
    assert (train.units, denoise.units) == (4, 4 * 3)
    # Forward and two gradients; the picture itself needs none.
    assert 2.8 * forward < train.matrix_flops < 3.0 * forward
    # Two passes, the text projected once for three steps and not three times.
    assert 1.8 * forward < denoise.matrix_flops < 2.0 * forward
    # At least parameters, their average and Adam's two moments.
    assert train.program_bytes > 4 * 4 * parameters
    assert train.program_bytes > denoise.program_bytes > 4 * parameters


@pytest.mark.parametrize("low_resolution", [0, 8])
def test_usual_order_has_the_same_blocks_and_more_work(low_resolution):
    stage = tiny_stage(low_resolution)
    networks = ours.stage_network(stage, TEXT_DIM), ours.usual_order(stage, TEXT_DIM)
    shapes = [
        jax.eval_shape(lambda key, model=model: init_params(model, key), jax.random.key(0))
        for model in networks
    ]
    left_out = {name: shapes[0].pop(name) for name in ("down_0_resample", "up_0_resample")}
    assert left_out and shapes[0] == shapes[1]
    (_, efficient), (_, usual) = map(size_and_flops, networks)
    # Four times the positions in every block; stem and head are the same.
    assert 2.0 < usual / efficient < 4.0


def test_equal_graph_is_a_network_of_the_package():
    model = ours.equal_graph(tiny_stage(), TEXT_DIM)
    params = init_params(model, jax.random.key(0))
    text = TextCond(tokens=jnp.ones((2, 3, TEXT_DIM)), mask=jnp.ones((2, 3), bool))
    z = jnp.ones((2, 16, 16, 3))
    out = apply_model(model, params, z, jnp.zeros(2), project_text(model, params, text))
    assert out.shape == z.shape and not out.any()  # the head starts at zero


def test_resampling_by_pixel_shuffle_loses_nothing():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    assert (graphs.depth_to_space(graphs.space_to_depth(x)) == x).all()
    assert (graphs.space_to_depth(x)[0, 1, 2] == x[0, 2:4, 4:6].reshape(-1)).all()


@pytest.mark.parity
@pytest.mark.skipif(not imagen_pytorch_peer.is_installed(), reason="needs imagen-pytorch")
def test_the_equal_graphs_are_equal():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    length, dim = 32, 128  # of the encoder and the captions of configs/shapes.py
    unet = imagen_pytorch_peer.equal_unet(length, dim, 0)
    text = {
        "text_embeds": torch.ones(1, length, dim),
        "text_mask": torch.ones(1, length, dtype=torch.bool),
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(torch.ones(1, 3, 16, 16), torch.zeros(1), **text)
    theirs = sum(parameter.numel() for parameter in unet.parameters())
    stage = tiny_stage(model=graphs.EQUAL_MODEL)
    parameters, flops = size_and_flops(ours.equal_graph(stage, dim), length)
    # Text conditioning and attention differ, see docs/benchmarks.md; the convolutions do not.
    assert parameters == pytest.approx(theirs, rel=0.04)
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(not imagen_pytorch_peer.is_installed(), reason="needs imagen-pytorch")
def test_its_programs_run_and_the_parameters_are_as_asked():
    subject = imagen_pytorch_peer.build(
        imagen_pytorch_peer.readme_unet, tiny_stage(), TEXT_LENGTH, TEXT_DIM, 2, 4_000_000
    )
    assert subject.parameters == pytest.approx(4_000_000, rel=0.1)  # widths come in steps of 2
    for name in (TRAIN, DENOISE):
        subject.programs[name].run(1)
        assert subject.programs[name].facts.matrix_flops > 0
