"""Both networks as a whole: start, gradients, scan, precision, text masks, other sizes, errors."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.models import (
    EfficientUNetConfig,
    UNetConfig,
    apply_network,
    init_params,
    presets,
    project_text,
)
from imagen_jax.models.efficient_unet import EfficientLevel
from imagen_jax.types import TextCond, null_text


def changed(model, **changes):
    """The same network with another configuration."""
    return dataclasses.replace(model.config, **changes).make_network(
        low_res=model.low_res, text_dim=model.text_dim
    )


def flat(tree) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


@functools.cache
def gradient_program(tiny, model):
    target = jax.random.normal(jax.random.key(3), tiny.z.shape)

    def loss(params):
        return jnp.mean((tiny.predict(params, model=model) - target) ** 2)

    return jax.jit(jax.value_and_grad(loss))


def gradients(tiny, params, model=None) -> tuple[float, dict[str, np.ndarray]]:
    value, grads = gradient_program(tiny, model or tiny.model)(params)
    return float(value), flat(grads)


def test_output_is_zero_at_first(tiny):
    prediction = tiny.jitted(tiny.params)
    assert prediction.shape == tiny.z.shape and prediction.dtype == jnp.float32
    np.testing.assert_array_equal(prediction, 0.0)
    assert float(jnp.std(tiny.jitted(tiny.perturbed))) > 0.1


def test_params_are_float32_and_depend_on_the_key(tiny):
    assert {leaf.dtype for leaf in jax.tree.leaves(tiny.params)} == {jnp.dtype("float32")}
    same = flat(init_params(tiny.model, jax.random.key(0)))
    other = flat(init_params(tiny.model, jax.random.key(1)))
    for path, value in flat(tiny.params).items():
        np.testing.assert_array_equal(value, same[path])
        constant = path.endswith(("bias", "scale")) or not value.any()
        assert constant == np.array_equal(value, other[path]), path


@pytest.mark.slow
def test_scanned_is_unrolled(tiny):
    scanned = changed(tiny.model, scan_blocks=True)
    loss, grads = gradients(tiny, tiny.perturbed)
    scan_loss, scan_grads = gradients(tiny, tiny.perturbed, scanned)
    assert math.isclose(loss, scan_loss, rel_tol=1e-5)  # f32, sums in another order
    largest = max(np.abs(g).max() for g in grads.values())
    assert grads.keys() == scan_grads.keys()
    for path, value in grads.items():
        # Rounding of sums over thousands of terms, relative to the largest gradient.
        np.testing.assert_allclose(
            scan_grads[path], value, rtol=1e-3, atol=1e-5 * largest, err_msg=path
        )


def test_scan_is_a_loop_and_unrolled_is_not():
    config = EfficientUNetConfig(
        channels=(8,),
        num_res_blocks=(3,),
        strides=(1,),
        self_attention=(False,),
        text_attention=("none",),
    )
    for scan in (False, True):
        model = dataclasses.replace(config, scan_blocks=scan).make_network(
            low_res=False, text_dim=4
        )
        params = jax.eval_shape(lambda key, m=model: init_params(m, key), jax.random.key(0))
        z = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
        logsnr = jax.ShapeDtypeStruct((1,), jnp.float32)
        text = TextCond(
            jax.ShapeDtypeStruct((1, 2, 4), jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.bool_)
        )

        def predict(params, z, logsnr, text, m=model):
            return apply_network(m, params, z, logsnr, project_text(m, params, text))

        program = jax.jit(predict).lower(params, z, logsnr, text).as_text()
        assert ("stablehlo.while" in program) == scan


@pytest.mark.parametrize("kind", ["unet", "efficient_unet"])
def test_patches_spare_the_full_resolution(kind):
    config = EfficientUNetConfig(
        channels=(8, 8),
        num_res_blocks=(1, 1),
        strides=(1, 2),
        self_attention=(False,) * 2,
        text_attention=("none",) * 2,
        head_dim=8,
        patch_size=2,
    )
    model = config.make_network(low_res=True, text_dim=4)
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    assert params["stem"]["kernel"].shape == (3, 3, 2 * 3 * 4, 8)
    assert params["head"]["kernel"].shape == (3, 3, 8, 3 * 4)

    def predict(params, side):
        z, level = jnp.zeros((1, side, side, 3)), jnp.zeros((1,))
        text = TextCond(jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool))
        features = project_text(model, params, text)
        return apply_network(model, params, z, level, features, low_res=z, aug_level=level)

    lowered = jax.jit(lambda params: predict(params, 16)).lower(params)
    assert lowered.out_info.shape == (1, 16, 16, 3)
    convolutions = re.findall(r"stablehlo.convolution.* -> tensor<1x(\d+)x", lowered.as_text())
    assert set(convolutions) == {"4", "8"}
    with pytest.raises(UserError, match="total stride 4"):
        jax.eval_shape(lambda params: predict(params, 18), params)


@pytest.mark.parametrize("kind", ["unet", "efficient_unet"])
def test_input_skip_adds_the_inputs_with_gains_of_the_noise_level(kind):
    config = EfficientUNetConfig(
        channels=(8, 8),
        num_res_blocks=(1, 1),
        strides=(1, 2),
        self_attention=(False,) * 2,
        text_attention=("none",) * 2,
        head_dim=8,
        patch_size=2,
        input_skip="add",
    )
    model = config.make_network(low_res=True, text_dim=4)
    params = init_params(model, jax.random.key(0))
    z, low_res = jax.random.normal(jax.random.key(1), (2, 2, 8, 8, 3))
    text = TextCond(jnp.zeros((2, 2, 4)), jnp.ones((2, 2), bool))

    def predict(params, logsnr):
        features = project_text(model, params, text)
        levels = {"low_res": low_res, "aug_level": jnp.array([0.1, 0.2])}
        return apply_network(model, params, z, jnp.asarray(logsnr), features, **levels)

    # The head starts at zero too: what is left is the skip alone.
    np.testing.assert_array_equal(predict(params, [0.0, 3.0]), 0.0)
    bias = jnp.array([0.5, -2.0])  # of the noisy picture, of the condition
    params["input_skip"]["gains"]["bias"] = bias
    expected = 0.5 * np.asarray(z) - 2.0 * np.asarray(low_res)
    np.testing.assert_allclose(predict(params, [0.0, 3.0]), expected, atol=1e-6)  # two products
    kernel = params["input_skip"]["gains"]["kernel"]
    params["input_skip"]["gains"]["kernel"] = jnp.ones_like(kernel)
    gains = predict(params, [0.0, 3.0]) - expected  # (a, a) times the inputs, a of the example
    ratio = np.asarray(gains) / np.asarray(z + low_res)
    first, second = np.median(ratio[0]), np.median(ratio[1])
    assert abs(first - second) > 1e-3
    scale = np.array([first, second])[:, None, None, None]
    np.testing.assert_allclose(gains, scale * np.asarray(z + low_res), atol=1e-4)


def mixing_network(low_res: bool):
    config = EfficientUNetConfig(
        channels=(8,),
        num_res_blocks=(1,),
        strides=(1,),
        self_attention=(False,),
        text_attention=("none",),
        patch_size=2,
        input_skip="mix",
    )
    return config.make_network(low_res=low_res, text_dim=4)


def test_input_mix_is_the_best_mix_of_two_estimates():
    """x_hat of error variance s^2 and z / alpha of e^-logsnr: by their inverse variances."""
    model = mixing_network(low_res=False)
    params = init_params(model, jax.random.key(0))
    z = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    logsnr = np.array([-20.0, 0.0, 7.0])
    text = TextCond(jnp.zeros((3, 2, 4)), jnp.ones((3, 2), bool))

    def predict(params):
        features = project_text(model, params, text)
        return apply_network(model, params, z, jnp.asarray(logsnr, jnp.float32), features)

    def mixed(x_hat: float, variance: float):
        alpha = np.sqrt(1 / (1 + np.exp(-logsnr)))
        weights = 1 / variance, np.exp(logsnr)  # inverse variances
        of_z = weights[1] / (weights[0] + weights[1]) / alpha
        of_x_hat = weights[0] / (weights[0] + weights[1])
        return (of_x_hat * x_hat)[:, None, None, None] + of_z[:, None, None, None] * np.asarray(z)

    # The head starts at zero, so x_hat is 0, and its error that of pictures.
    np.testing.assert_allclose(predict(params), mixed(0.0, 0.25), rtol=1e-5, atol=1e-7)
    params["head"]["bias"] = jnp.full_like(params["head"]["bias"], 0.7)
    params["input_mix"]["log_variance"]["bias"] = jnp.array([math.log(0.01 / 0.25)])
    np.testing.assert_allclose(predict(params), mixed(0.7, 0.01), rtol=1e-5, atol=1e-6)


def test_input_mix_first_adds_the_low_res_picture():
    model = mixing_network(low_res=True)
    params = init_params(model, jax.random.key(0))
    z, low_res = jax.random.normal(jax.random.key(1), (2, 2, 8, 8, 3))
    text = TextCond(jnp.zeros((2, 2, 4)), jnp.ones((2, 2), bool))
    params["input_mix"]["gain_1"]["bias"] = jnp.array([0.9])
    params["input_mix"]["log_variance"]["bias"] = jnp.array([-30.0])  # x_hat alone
    levels = {"low_res": low_res, "aug_level": jnp.array([0.1, 0.2])}
    features = project_text(model, params, text)
    output = apply_network(model, params, z, jnp.zeros(2), features, **levels)
    np.testing.assert_allclose(output, 0.9 * low_res, atol=1e-6)


@pytest.mark.slow
def test_keys_have_a_bias_only_where_it_changes_something(tiny):
    """Softmax ignores what all keys share; only in joint attention there are two kinds of keys."""
    with_biases = changed(tiny.model, shared_key_bias=True)
    params = flat(jax.eval_shape(lambda key: init_params(with_biases, key), jax.random.key(0)))
    superfluous = sorted(set(params) - set(flat(tiny.params)))
    assert superfluous and "text/pool/key/bias" in superfluous
    assert all(path.endswith("key/bias") for path in superfluous)
    key = iter(jax.random.split(jax.random.key(8), 100))

    def give(path, value):
        name = "/".join(entry.key for entry in path)
        there = flat(tiny.perturbed).get(name)
        return jax.random.normal(next(key), value.shape) if there is None else jnp.asarray(there)

    tree = jax.eval_shape(lambda key: init_params(with_biases, key), jax.random.key(0))
    filled = jax.tree_util.tree_map_with_path(give, tree)
    ours, theirs = tiny.jitted(tiny.perturbed), tiny.predict(filled, model=with_biases)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.abs(ours).max()))  # f32 softmax


@pytest.mark.slow
def test_deep_levels_start_alive_at_the_depth_of_the_presets():
    """Signals of order 1 at every level, and gradients that Adam sees."""
    config = EfficientUNetConfig(
        channels=(16, 32, 64, 128),
        num_res_blocks=presets.sr256().num_res_blocks,
        strides=(2, 2, 2, 2),
        self_attention=(False, False, False, True),
        text_attention=("none", "none", "none", "joint"),
        head_dim=32,
        attention_expansion=2,
    )
    model = config.make_network(low_res=False, text_dim=8)
    params = init_params(model, jax.random.key(0))
    head = params["head"]["kernel"].shape
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), head) / math.sqrt(9 * head[2])
    z, target = jax.random.normal(jax.random.key(2), (2, 2, 64, 64, 3))
    text = TextCond(jax.random.normal(jax.random.key(3), (2, 4, 8)), jnp.ones((2, 4), bool))

    @jax.jit
    def gradient(params):
        def loss(params):
            features = project_text(model, params, text)
            return jnp.mean((apply_network(model, params, z, jnp.zeros(2), features) - target) ** 2)

        return jax.grad(loss)(params)

    network_params = {name: value for name, value in params.items() if name != "text"}
    features = project_text(model, params, text)
    _, state = model.apply(
        {"params": network_params}, z, jnp.zeros(2), features,
        capture_intermediates=lambda module, _: isinstance(module, EfficientLevel),
        mutable=["intermediates"],
    )  # fmt: skip
    levels = {name: entry["__call__"][0] for name, entry in state["intermediates"].items()}
    assert len(levels) == 8
    for name, output in levels.items():
        assert 0.5 < float(output.std()) < 1.2, (name, float(output.std()))
    grads = gradient(params)
    # Of a level: a change of all its second convolutions by one unit.
    norms = {
        name: float(jnp.linalg.norm(grads[name]["blocks"]["conv_2"]["kernel"])) for name in levels
    }
    assert norms["up_0"] / 3 < min(norms.values()) <= max(norms.values()) < 3 * norms["up_0"], norms


def behind_a_zero_kernel(path: str) -> bool:
    """Whether a parameter reaches the output only through a kernel that starts at zero."""
    parts = path.split("/")
    if "attention" in parts or "cross_attention" in parts:
        return "out" not in parts
    if parts[0] in ("text", "time_embedding", "aug_embedding"):
        return True  # only attention, and the modulation in the blocks, read them
    # Blocks end in a convolution of zeros.
    return any(name in parts for name in ("norm_1", "conv_1", "embedding", "norm_2"))


def test_gradients_at_first_are_zero_exactly_behind_zero_kernels(tiny):
    _, grads = gradients(tiny, tiny.params)
    assert all(np.isfinite(g).all() for g in grads.values())
    assert {path for path, g in grads.items() if g.any()} == {"head/kernel", "head/bias"}

    # The head is the first to move; what comes next.
    head = {**tiny.params, "head": tiny.perturbed["head"]}
    _, grads = gradients(tiny, head)
    for path, value in grads.items():
        assert value.any() != behind_a_zero_kernel(path), path


def test_every_parameter_gets_a_gradient_once_nothing_is_zero(tiny):
    _, grads = gradients(tiny, tiny.perturbed)
    largest = max(np.abs(g).max() for g in grads.values())
    assert all(np.isfinite(g).all() for g in grads.values())
    zero = {path for path, g in grads.items() if np.abs(g).max() < 1e-6 * largest}
    assert not zero


def test_bfloat16_is_close_to_float32(tiny):
    half = changed(tiny.model, dtype="bfloat16")
    exact = tiny.jitted(tiny.perturbed)
    rounded = jax.jit(lambda params: tiny.predict(params, model=half))(tiny.perturbed)
    assert rounded.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((rounded - exact) ** 2)) / jnp.std(exact))
    # A bfloat16 has 8 bits, 0.4 %; a dozen roundings in a row.
    assert 0.0 < error < 0.03


@pytest.mark.parametrize("pad", [1e30, np.nan])
def test_padded_tokens_have_no_influence(tiny, pad):
    predict = tiny.jitted
    filled = jnp.where(tiny.text.mask[..., None], tiny.text.tokens, pad)
    clean = predict(tiny.perturbed, tiny.text)
    np.testing.assert_array_equal(predict(tiny.perturbed, TextCond(filled, tiny.text.mask)), clean)
    # And valid ones have.
    other = predict(tiny.perturbed, TextCond(tiny.text.tokens + 1.0, ~tiny.text.mask))
    assert float(jnp.abs(other - clean)[0].max()) > 1e-3


def test_more_padding_changes_nothing(tiny):
    longer = TextCond(
        tokens=jnp.pad(tiny.text.tokens, ((0, 0), (0, 4), (0, 0)), constant_values=5.0),
        mask=jnp.pad(tiny.text.mask, ((0, 0), (0, 4))),
    )
    predict = tiny.jitted
    # Sums of another length are rounded differently.
    np.testing.assert_allclose(
        predict(tiny.perturbed, longer), predict(tiny.perturbed, tiny.text), atol=1e-5
    )


def test_null_text_and_a_single_token_work(tiny):
    predict = tiny.jitted
    null = predict(tiny.perturbed, null_text(tiny.text))
    single = TextCond(tiny.text.tokens, jnp.zeros_like(tiny.text.mask).at[:, 0].set(True))
    for prediction in (null, predict(tiny.perturbed, single)):
        assert bool(jnp.all(jnp.isfinite(prediction)))
    assert float(jnp.abs(null - predict(tiny.perturbed, single)).max()) > 1e-3


def test_every_input_matters_and_pictures_do_not_mix(tiny):
    predict = tiny.jitted
    inputs = {"z": tiny.z, "logsnr": tiny.logsnr, **tiny.conditions}
    base = predict(tiny.perturbed, **inputs)
    for name, value in inputs.items():
        moved = predict(tiny.perturbed, **{**inputs, name: value.at[0].add(0.3)})
        difference = jnp.abs(moved - base)
        assert float(difference[0].max()) > 1e-4, name
        np.testing.assert_array_equal(difference[1], 0.0, err_msg=name)


def test_other_sizes_than_the_trained_one(tiny):
    conditions = {
        name: jnp.ones((2, 16, 24, 3)) if name == "low_res" else value
        for name, value in tiny.conditions.items()
    }
    z = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    prediction = jax.jit(lambda p: tiny.predict(p, z=z, **conditions))(tiny.perturbed)
    assert prediction.shape == z.shape and bool(jnp.all(jnp.isfinite(prediction)))


def test_dropout_needs_a_key_and_differs_between_keys(tiny):
    # One kind scanned, the other unrolled: both ways of handing keys to blocks.
    model = changed(tiny.model, dropout=0.5, scan_blocks=tiny.model.config.kind == "unet")
    predict = jax.jit(lambda params, key: tiny.predict(params, model=model, dropout_key=key))
    first = predict(tiny.perturbed, jax.random.key(0))
    np.testing.assert_array_equal(first, predict(tiny.perturbed, jax.random.key(0)))
    assert float(jnp.abs(first - predict(tiny.perturbed, jax.random.key(1))).max()) > 1e-2
    assert float(jnp.abs(first - tiny.jitted(tiny.perturbed)).max()) > 1e-2


def check(resolution=16, kind=EfficientUNetConfig, **changes):
    kind(**changes).check_resolution(resolution)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 12}, "resolution 12 .* total stride 8"),
        ({"resolution": 6, "kind": UNetConfig}, "resolution 6 .* total stride 4"),
        ({"head_dim": 48}, "head_dim=48"),
        ({"num_res_blocks": (2, 2)}, r"num_res_blocks=\(2, 2\) has 2 entries"),
        ({"strides": (2,)}, "strides"),
        ({"self_attention": (True,) * 4}, "self_attention"),
        ({"text_attention": ("none",)}, "text_attention"),
        ({"text_attention": ("joint", "joint", "joint")}, "needs self_attention"),
        ({"text_attention": ("none", "joint", "both")}, "'both'"),
        ({"strides": (1, 2, 3)}, "strides"),
        ({"num_res_blocks": (2, 0, 2)}, "num_res_blocks"),
        ({"channels": (3, 128, 256)}, "even"),
        ({"kind": UNetConfig, "head_dim": 48}, "level 1 attends"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_contradictory_configurations_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(**changes)


def test_attention_that_no_device_holds_is_refused():
    config = EfficientUNetConfig(
        channels=(64, 64),
        num_res_blocks=(1, 1),
        strides=(1, 2),
        self_attention=(True, True),
        text_attention=("none", "none"),
        head_dim=64,
    )
    # One head, 4 bytes: 128^4 * 4 = 1 GiB, 256^4 * 4 = 16 GiB; the second level has half the side.
    config.check_resolution(128)
    with pytest.raises(
        UserError, match=r"level 0 would attend over 256x256.*16.0 GiB.*\[0\]=False"
    ):
        config.check_resolution(256)
    lower = dataclasses.replace(config, self_attention=(False, True))
    lower.check_resolution(256)
    with pytest.raises(UserError, match="level 1 would attend over 256x256"):
        lower.check_resolution(512)


def test_wrong_inputs_are_refused(tiny):
    with pytest.raises(UserError, match="8x7"):
        tiny.predict(tiny.params, z=tiny.z[:, :, :7])
    wide = TextCond(jnp.ones((2, 5, 99)), tiny.text.mask)
    with pytest.raises(UserError, match="99"):
        project_text(tiny.model, tiny.params, wide)
    superfluous = {"low_res": tiny.z, "aug_level": tiny.logsnr}
    wrong = {name: None for name in superfluous} if tiny.model.low_res else superfluous
    with pytest.raises(UserError, match="low_res"):
        tiny.predict(tiny.params, **wrong)
    if tiny.model.low_res:
        with pytest.raises(UserError, match="up-sample"):
            tiny.predict(tiny.params, low_res=tiny.z[:, :4, :4])
