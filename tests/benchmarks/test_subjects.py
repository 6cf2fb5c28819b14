"""The timed programs run, and their facts are right."""

import jax
import jax.numpy as jnp
import pytest
from networks import TEXT_DIM, size_and_flops, tiny_cascade

from benchmarks import graphs, ours
from benchmarks.measure import DENOISE, TRAIN
from imagen_jax.models import EfficientUNetConfig, apply_network, init_params, project_text
from imagen_jax.stage import open_stage
from imagen_jax.types import TextCond


@pytest.mark.slow
def test_our_programs_run_and_their_facts_agree():
    small = EfficientUNetConfig(
        channels=(16,),
        num_res_blocks=(1,),
        strides=(2,),
        self_attention=(True,),
        text_attention=("joint",),
        head_dim=16,
    )
    cascade = tiny_cascade(low_resolution=8, model=small)
    subject = ours.build(open_stage, cascade, "stage", TEXT_DIM, 3)
    parameters, forward = size_and_flops(open_stage(cascade, "stage", TEXT_DIM).network, 16)
    assert subject.parameters == parameters
    for name in (TRAIN, DENOISE):
        subject.programs[name].run(2)
    train, denoise = (subject.programs[name].facts for name in (TRAIN, DENOISE))
    assert (train.units, denoise.units) == (4, 4 * 3)
    # Forward and two gradients; the input picture needs no gradient.
    assert 2.8 * forward < train.matrix_flops < 3.0 * forward
    # Two passes; the text is projected once for the three steps.
    assert 1.8 * forward < denoise.matrix_flops < 2.0 * forward
    # At least parameters, their average and Adam's two moments.
    assert train.program_bytes > 4 * 4 * parameters
    assert train.program_bytes > denoise.program_bytes > 4 * parameters


@pytest.mark.slow
def test_equal_graph_is_a_network_of_the_package():
    model = ours.open_equal_graph(tiny_cascade(), "stage", TEXT_DIM).network
    params = init_params(model, jax.random.key(0))
    text = TextCond(tokens=jnp.ones((2, 3, TEXT_DIM)), mask=jnp.ones((2, 3), bool))
    z = jnp.ones((2, 16, 16, 3))
    out = apply_network(model, params, z, jnp.zeros(2), project_text(model, params, text))
    assert out.shape == z.shape and not out.any()  # the head starts at zero


def test_resampling_by_pixel_shuffle_loses_nothing():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    assert (graphs.depth_to_space(graphs.space_to_depth(x)) == x).all()
    assert (graphs.space_to_depth(x)[0, 1, 2] == x[0, 2:4, 4:6].reshape(-1)).all()
