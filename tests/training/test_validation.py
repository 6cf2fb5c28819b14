"""The validation loss depends on the held-out pictures and the weights alone."""

import dataclasses

import jax
import numpy as np
import pytest

from imagen_jax.config import (
    CascadeConfig,
    DataConfig,
    MeshConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
)
from imagen_jax.data.open import load_source
from imagen_jax.data.source import Item
from imagen_jax.models import EfficientUNetConfig, init_params
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stage import open_stage
from imagen_jax.text.encoder import load_encoder
from imagen_jax.training.activities import Activities
from imagen_jax.training.step import BUCKETS
from imagen_jax.training.validation import Validation

IMAGES = 20
MODEL = EfficientUNetConfig(
    channels=(8,),
    num_res_blocks=(1,),
    strides=(2,),
    self_attention=(False,),
    text_attention=("cross",),
    head_dim=8,
    dropout=0.5,
)


def cascade(source: str = "shapes", path: str = "", **train) -> CascadeConfig:
    settings = {"validation_images": IMAGES, "batch_size": 8} | train
    train = TrainConfig(**settings)
    # Only super-resolution stages are trained on crops.
    stage = StageConfig(resolution=8, model=MODEL, train=dataclasses.replace(train, crop_size=0))
    sr = dataclasses.replace(stage, resolution=16, low_resolution=8, train=train)
    return CascadeConfig(
        data=DataConfig(source=source, path=path),
        text=TextConfig(max_length=8),
        stages={"base": stage, "sr": sr},
    )


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(TextConfig(max_length=8))


def encoder_on(mesh):
    return load_encoder(TextConfig(max_length=8), mesh=mesh)


def validation(config, encoder, stage="base", mesh_config=None, devices=1):
    """The validation and parameters of the network; `untrained` ones predict zero."""
    mesh = make_mesh(mesh_config or MeshConfig(), jax.devices()[:devices])
    stage = open_stage(config, stage, encoder.dim)
    source = load_source(config.data, "train", stage.config.resolution)
    check = Validation(stage, encoder_on(mesh), mesh, source, Activities())
    return check, init_params(stage.network, jax.random.key(0))


def noisy(params):
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape), params)


def test_a_network_that_predicts_nothing_has_the_mean_square_of_the_target(encoder):
    check, params = validation(cascade(validation_images=100), encoder)
    values = check(params)
    # v = alpha eps - sigma x, so E v^2 = alpha^2 + sigma^2 x^2, on the cosine schedule
    # cos^2(pi t / 2) + sin^2(pi t / 2) x^2, each 1/2 on average over t.
    source = load_source(DataConfig(), "held_out", 8)
    pictures = np.stack([source.item(index).image for index in range(100)]) / 127.5 - 1
    expected = 0.5 + 0.5 * np.mean(pictures**2)
    # 100 pictures of 192 numbers: the noise's own mean square is known to 1 %, and the pictures'
    # mean squares of between 0 and 1 (spread 0.3) meet each its own time: 0.3 * 0.35 / 10 more.
    assert abs(values["validation_loss"] - expected) < 0.05
    assert set(values["validation_loss_by_logsnr"]) == set(BUCKETS)


def test_it_is_the_same_again_and_for_any_batch_size_seed_and_mesh(encoder):
    check, params = validation(cascade(), encoder)
    params = noisy(params)
    values = check(params)
    assert check(params) == values
    # Three batches of 8 with 4 rows to spare; one of 32 on a mesh.
    config = dataclasses.replace(cascade(batch_size=32, text_drop_rate=1.0), seed=7)
    other, _ = validation(config, encoder, mesh_config=MeshConfig(data=4, fsdp=2), devices=8)
    again = other(params)
    # float32 sums in another order.
    np.testing.assert_allclose(again["validation_loss"], values["validation_loss"], rtol=1e-5)
    for name, value in values["validation_loss_by_logsnr"].items():
        np.testing.assert_allclose(
            again["validation_loss_by_logsnr"][name], value, rtol=1e-5, err_msg=name
        )


def test_it_depends_on_weights_pictures_and_captions(encoder, monkeypatch):
    check, params = validation(cascade(), encoder)
    params = noisy(params)
    loss = check(params)["validation_loss"]
    assert check(jax.tree.map(lambda p: 1.1 * p, params))["validation_loss"] != loss
    other_captions = [dataclasses.replace(item, caption="a cow") for item in check._items]
    monkeypatch.setattr(check, "_items", other_captions)
    assert check(params)["validation_loss"] != loss


def test_a_super_resolution_stage_is_validated_on_crops(encoder):
    check, params = validation(cascade(crop_size=8), encoder, stage="sr")
    assert {item.image.shape for item in check._items} == {(8, 8, 3)}
    whole = load_source(DataConfig(), "held_out", 16).item(0).image
    np.testing.assert_array_equal(check._items[0].image, whole[4:12, 4:12])
    assert 0.1 < check(params)["validation_loss"] < 2.0


def test_the_pictures_are_held_out(encoder):
    check, _ = validation(cascade(), encoder)
    source = load_source(DataConfig(), "held_out", 8)
    assert [item.caption for item in check._items] == [
        source.item(index).caption for index in range(IMAGES)
    ]
    assert f"{IMAGES} held-out pictures" in check.note


def folder(directory, number: int) -> str:
    from PIL import Image

    for index in range(number):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(directory / f"{index}.png")
        (directory / f"{index}.txt").write_text(f"picture {index}")
    return str(directory)


def test_a_folder_too_small_to_split_is_validated_on_itself_and_says_so(encoder, tmp_path):
    check, params = validation(cascade("folder", folder(tmp_path, 3)), encoder)
    assert len(check._items) == 3
    assert "too few to hold any out" in check.note
    assert 0.1 < check(params)["validation_loss"] < 2.0


def test_a_larger_folder_holds_some_out(encoder, tmp_path):
    check, _ = validation(cascade("folder", folder(tmp_path, 150)), encoder)
    assert 1 <= len(check._items) < 20
    assert "held-out" in check.note


def test_zero_means_never(encoder):
    check, _ = validation(cascade(validate_every=0), encoder)
    assert not check
    assert "no validation" in check.note


def test_pictures_of_several_shapes_count_one_like_the_other(encoder, monkeypatch):
    check, _ = validation(cascade(batch_size=4), encoder)
    shapes = [(8, 8)] * 5 + [(6, 10)] * 2 + [(10, 6)]
    items = [Item(np.full((*shape, 3), 7 * i, np.uint8), "") for i, shape in enumerate(shapes)]
    seen = []

    def sums(params, batch, index, weight):
        """As a loss, the picture's value times its place in the whole set."""
        seen.append(batch.image.shape)
        values = np.asarray(batch.image[:, 0, 0, 0], np.float32) * np.asarray(index)
        total = np.zeros(len(BUCKETS))
        total[0] = (values * np.asarray(weight)).sum()
        return {"bucket_loss": total, "bucket_count": total}

    monkeypatch.setattr(check, "_items", items)
    monkeypatch.setattr(check, "_sums", sums)
    loss = check(None)["validation_loss"]
    assert loss == pytest.approx(sum(7 * i * i for i in range(8)) / 8)
    assert seen == [(4, 8, 8, 3), (4, 8, 8, 3), (4, 6, 10, 3), (4, 10, 6, 3)]
