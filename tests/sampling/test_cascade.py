"""The cascade as a user calls it."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.samplers import DDIM
from imagen_jax.diffusion.thresholding import DynamicThreshold
from imagen_jax.errors import UserError
from imagen_jax.sampling import Cascade
from imagen_jax.sampling.low_res_image import load_low_res_image
from imagen_jax.weights import artefact as artefact_lib

PROMPT, OTHER = "a red circle", "a blue square"


@pytest.fixture(scope="module")
def cascade(tiny):
    return Cascade.from_artefact(tiny)


@pytest.fixture(scope="module")
def result(cascade):
    return cascade([PROMPT, OTHER], num_images=2, seed=5, batch_size=4)


def close(a, b):
    """Equal up to the rounding of another program: one level in 256, in few places."""
    difference = np.abs(a.astype(int) - b.astype(int))
    return difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_pictures(result):
    assert {name: p.shape for name, p in result.images.items()} == {
        "base": (4, 8, 8, 3),
        "sr16": (4, 16, 16, 3),
    }
    assert all(p.dtype == np.uint8 for p in result.images.values())
    assert result.seeds == (5, 6)
    assert result.weights == {"base": "0" * 64, "sr16": "1" * 64}
    assert [p.size for p in result.pil()] == [(16, 16)] * 4
    assert [p.size for p in result.pil("base")] == [(8, 8)] * 4
    for pictures in result.images.values():
        assert len(np.unique(pictures.reshape(4, -1), axis=0)) == 4


def test_the_same_call_gives_the_same_bits(cascade, result):
    again = cascade([PROMPT, OTHER], num_images=2, seed=5, batch_size=4)
    for name in result.images:
        np.testing.assert_array_equal(again.images[name], result.images[name])


def test_a_picture_depends_on_its_prompt_and_seed_alone(cascade, result):
    # Same batch size (same program), other neighbours, other place; a part-filled last batch.
    more = cascade([OTHER, PROMPT, OTHER], num_images=3, seed=4, batch_size=4)
    for name, pictures in result.images.items():
        rows = more.images[name].reshape(3, 3, *pictures.shape[1:])
        np.testing.assert_array_equal(rows[1, 1:], pictures[:2])
        np.testing.assert_array_equal(rows[0, 1:], pictures[2:])
        np.testing.assert_array_equal(rows[2], rows[0])


def test_batch_size_does_not_matter(cascade, result):
    one_by_one = cascade([PROMPT, OTHER], num_images=2, seed=5, batch_size=1)
    for name, pictures in result.images.items():
        assert close(one_by_one.images[name], pictures)


def test_the_last_batch_does_not_recompile(cascade):
    from imagen_jax.sampling import loop as stage

    cascade(PROMPT, num_images=4, batch_size=4)
    before = stage.sampler_program()._cache_size()
    cascade(PROMPT, num_images=5, batch_size=4)
    assert stage.sampler_program()._cache_size() == before


def test_stopping_and_starting_at_a_stage(cascade, result, tmp_path):
    base = cascade([PROMPT, OTHER], num_images=2, seed=5, stages=["base"], batch_size=4)
    assert list(base.images) == ["base"]
    np.testing.assert_array_equal(base.images["base"], result.images["base"])
    # The second stage alone, from the first's picture as a file, draws what the cascade drew.
    base.save(tmp_path)
    picture = tmp_path / "base" / "001_seed6_a-blue-square.png"
    sr = cascade(OTHER, num_images=4, seed=6, low_res_image=picture, batch_size=4)
    assert list(sr.images) == ["sr16"]
    np.testing.assert_array_equal(sr.images["sr16"][0], result.images["sr16"][3])


def test_low_res_image_is_cut_and_resized(caplog):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(load_low_res_image(small, 8, 8), small)
    large = small.repeat(3, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(load_low_res_image(Image.fromarray(large), 8, 8), small)
    wide = np.pad(large, ((0, 0), (5, 5), (0, 0)))
    with caplog.at_level(logging.WARNING, "imagen_jax"):
        np.testing.assert_array_equal(load_low_res_image(wide, 8, 8), small)
    assert "34x24" in caplog.text
    assert load_low_res_image(small[:5, :5], 8, 8).shape == (8, 8, 3)
    with pytest.raises(UserError, match="uint8"):
        load_low_res_image(small.astype(np.float32), 8, 8)


def test_low_res_image_files(tmp_path, caplog):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    picture = load_low_res_image(tmp_path / "a.png", 8, 8)
    assert picture[0, 0].tolist() == [255, 0, 0] and picture[1, 2].tolist() == [255, 255, 255]
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / "wide.png")
    with caplog.at_level(logging.WARNING, "imagen_jax"):
        assert load_low_res_image(tmp_path / "wide.png", 8, 8).shape == (8, 8, 3)
    assert "12x8" in caplog.text
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match="cannot be read"):
        load_low_res_image(tmp_path / "text.png", 8, 8)


def test_settings_by_stage(cascade, result):
    stronger = dataclasses.replace(cascade.settings("sr16"), guidance=Guidance(6.0))
    changed = cascade(
        [PROMPT, OTHER], num_images=2, seed=5, batch_size=4, settings={"sr16": stronger}
    )
    np.testing.assert_array_equal(changed.images["base"], result.images["base"])
    assert (changed.images["sr16"] != result.images["sr16"]).any()
    assert changed.settings["sr16"].guidance.weight == 6.0


def test_keywords_and_a_list_of_seeds(cascade, result):
    seen = []
    drawn = cascade(
        [PROMPT, OTHER],
        seeds=[6, 5],
        stages="base",
        num_steps=3,
        guidance_weight={"base": 2},
        sampler="ddim",
        batch_size=4,
        callback=seen.append,
    )
    assert drawn.seeds == (6, 5) and list(drawn.images) == ["base"]
    assert drawn.settings["base"] == cascade.settings("base")
    # The same pictures as with seed=5, in the order of the seeds.
    np.testing.assert_array_equal(drawn.images["base"], result.images["base"][[1, 0, 3, 2]])
    assert [(event.stage, event.compiling, event.done) for event in seen] == [
        ("text encoder", True, 0),
        ("base", True, 0),
        ("base", False, 0),
        ("base", False, 4),
    ]
    assert seen[-1].share == 1.0 and seen[-1].seconds_left == 0.0
    as_seed = cascade(
        PROMPT, seed=np.array([5, 6]), stages=("base",), sampler=DDIM(eta=0.5), batch_size=2
    )
    assert as_seed.seeds == (5, 6)
    assert close(as_seed.images["base"], result.images["base"][:2])


def test_a_callback_may_end_the_call(cascade):
    def stop(event):
        raise StopAsyncIteration

    with pytest.raises(StopAsyncIteration):
        cascade(PROMPT, num_images=1, callback=stop)


def test_repr_is_short(cascade):
    assert repr(cascade) == "Cascade('test': base 8 px, sr16 16 px)"


def test_any_prompt(cascade, caplog):
    prompts = [
        "",
        "red circle " * 1000,
        "\N{GRINNING FACE}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}",
        "دائرة حمراء",
        "</s><pad>",
        "\ud83d",
    ]
    with caplog.at_level(logging.WARNING, "imagen_jax"):
        result = cascade(prompts, num_images=1, stages=["base"], batch_size=4)
    assert len(result.images["base"]) == len(prompts)
    assert "of 6 prompts are longer than the 12 tokens" in caplog.text


def test_saved_files(result, tmp_path):
    grids = result.save(tmp_path)
    assert [p.name for p in grids] == ["grid_base.png", "grid_sr16.png"]
    assert len(list(tmp_path.glob("*/*.png"))) == len(list(tmp_path.glob("*/*.json"))) == 8
    with Image.open(tmp_path / "sr16" / "001_seed6_a-blue-square.png") as file:
        np.testing.assert_array_equal(np.asarray(file), result.images["sr16"][3])
        assert file.text["prompt"] == OTHER
        assert json.loads(file.text["seed"]) == 6
        assert json.loads(file.text["settings"])["base"]["guidance"]["weight"] == 2.0
        assert json.loads(file.text["weights"])["sr16"] == "1" * 64
    with Image.open(grids[0]) as file:
        assert json.loads(file.text["prompts"]) == [PROMPT, OTHER]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompt"),
        ({"prompts": [3]}, "is a string"),
        ({"num_images": 0}, "num_images=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed="),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ({"seed": [1, "x"]}, "seeds: 'x' is not a whole number"),
        ({"seeds": [1, 1]}, "seed=1 is given twice"),
        ({"seeds": []}, "no seed is given"),
        ({"seeds": 3}, "must be a list of whole numbers"),
        ({"seeds": [1], "seed": 2}, "are both given"),
        ({"seeds": [1, 2], "num_images": 3}, "num_images=3, but there are 2 seeds"),
        ({"seeds": [-1]}, "seed=-1"),
        ({"stages": "base,sr64"}, "no stage 'sr64'; the stages are base, sr16"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": 2.5}, "num_steps: 2.5 is not a whole number"),
        ({"num_steps": {"sr64": 3}}, "num_steps for 'sr64', but the stages are base, sr16"),
        ({"guidance_weight": "big"}, "guidance_weight='big' is not a number"),
        ({"guidance_weight": float("nan")}, "weight=nan must be finite"),
        ({"sampler": "plms"}, "sampler='plms' must be one of"),
        ({"sampler": 3}, "sampler=3 is no sampler"),
        ({"stages": ["sr64"]}, "no stage 'sr64'; the stages are base, sr16"),
        ({"stages": []}, "no stage is chosen"),
        ({"stages": ["sr16"]}, "--low_res_image"),
        ({"stages": ["sr16", "base"], "low_res_image": np.zeros((8, 8, 3), np.uint8)}, "order is"),
        (
            {"stages": ["base"], "low_res_image": np.zeros((8, 8, 3), np.uint8)},
            "no low-resolution image",
        ),
        ({"low_res_image": "missing.png"}, "does not exist"),
        ({"settings": {"sr64": None}}, "settings for 'sr64'"),
    ],
)
def test_bad_input(cascade, arguments, message):
    with pytest.raises(UserError, match=message):
        cascade(**{"prompts": [PROMPT], **arguments})


def test_percentile_in_the_wrong_unit(cascade):
    settings = cascade.settings("base")
    with pytest.raises(UserError, match=r"percentile=0.995 .*99\.5"):
        dataclasses.replace(settings, threshold=DynamicThreshold(percentile=0.995))


def test_a_run_that_has_only_its_base(tiny, tmp_path):
    artefact_lib.save_stage(
        tmp_path / "base" / "ema",
        "base",
        tiny.config,
        tiny.stages["base"].params,
        {"steps": 1, "images_seen": 8},
        tiny.encoder_identity,
        tiny.tokenizer_hash,
    )
    cascade = Cascade.from_directory(tmp_path)
    assert cascade.chain(None, has_picture=False) == ["base"]
    with pytest.raises(UserError, match=r"'sr16' has no weights yet.*--stage=sr16"):
        cascade.chain(["base", "sr16"], has_picture=False)
    with pytest.raises(UserError, match="'sr16' has no weights yet"):
        cascade.chain(None, has_picture=True)


def test_a_run_that_has_only_its_second_stage(tiny):
    artefact = dataclasses.replace(tiny, stages={"sr16": tiny.stages["sr16"]})
    cascade = Cascade.from_artefact(artefact)
    assert cascade.chain(None, has_picture=True) == ["sr16"]
    with pytest.raises(UserError, match="'base' has no weights yet"):
        cascade.chain(None, has_picture=False)


def test_another_text_encoder(tiny):
    other = dataclasses.replace(tiny, encoder_identity="f" * 64)
    with pytest.raises(UserError, match="another text encoder"):
        Cascade.from_artefact(other)


def test_weights_of_another_network(tiny):
    base = tiny.stages["base"]
    params = {name: value for name, value in base.params.items() if name != "text"}
    broken = dataclasses.replace(base, params=params)
    with pytest.raises(UserError, match="'base' do not fit"):
        Cascade.from_artefact(dataclasses.replace(tiny, stages={"base": broken}))


def test_diverged_weights(tiny):
    base = tiny.stages["base"]
    params = jax.tree.map(lambda p: np.full_like(p, np.nan), base.params)
    broken = dataclasses.replace(base, params=params)
    cascade = Cascade.from_artefact(dataclasses.replace(tiny, stages={"base": broken}))
    with pytest.raises(UserError, match="not finite"):
        cascade(PROMPT, num_images=4, batch_size=4)


def test_unknown_shipped_name():
    with pytest.raises(UserError, match=r"train.py --config=configs/nothing.py"):
        Cascade.from_name("nothing")


def trained_in(tiny, **shapes):
    """The artefact with what a run in buckets writes beside the weights."""
    stages = {
        name: dataclasses.replace(stage, training=stage.training | {"shapes": shapes[name]})
        for name, stage in tiny.stages.items()
    }
    return Cascade.from_artefact(dataclasses.replace(tiny, stages=stages))


BASE = {"1:1": [8, 8], "2:1": [4, 8], "3:1": [4, 12]}
SR = {"1:1": [16, 16], "2:1": [8, 16], "3:1": [16, 24]}


def test_aspect_ratios(tiny, cascade, result, tmp_path, caplog):
    bucketed = trained_in(tiny, base=BASE, sr16=SR)
    wide = bucketed(PROMPT, num_images=2, seed=5, batch_size=2, aspect="4:2")
    assert {name: p.shape for name, p in wide.images.items()} == {
        "base": (2, 4, 8, 3),
        "sr16": (2, 8, 16, 3),
    }
    assert wide.metadata("sr16")["aspect"] == "4:2"
    # Squares are what they are without buckets.
    square = bucketed([PROMPT, OTHER], num_images=2, seed=5, batch_size=4)
    for name in result.images:
        np.testing.assert_array_equal(square.images[name], result.images[name])
    # The second stage alone, from the first's picture; a larger one is cut to the same ratio.
    wide.save(tmp_path)
    for picture in (
        tmp_path / "base" / "000_seed6_a-red-circle.png",
        np.zeros((40, 40, 3), np.uint8),
    ):
        sr = bucketed(
            PROMPT, num_images=2, seed=6, low_res_image=picture, batch_size=2, aspect="2:1"
        )
        assert sr.images["sr16"].shape == (2, 8, 16, 3)
        if not isinstance(picture, np.ndarray):
            np.testing.assert_array_equal(sr.images["sr16"][0], wide.images["sr16"][1])
    assert "40x40 pixels; the middle of it, 8:4, is used" in caplog.text


def test_aspect_ratios_that_were_not_trained(tiny, cascade):
    bucketed = trained_in(tiny, base=BASE, sr16={"1:1": [16, 16], "3:1": [16, 24]})
    for drawing, aspect, message in (
        (cascade, "3:2", "'base' was not trained on pictures of 3:2 .*, only on 1:1"),
        (bucketed, "3:2", "'base' was not trained on pictures of 3:2 .*, only on 1:1, 2:1, 3:1"),
        (bucketed, "2:1", "'sr16' was not trained on pictures of 2:1 .*, only on 1:1, 3:1"),
        (bucketed, "3:1", "at 3:1 the one draws 12x4 pixels, the other 24x16"),
        (bucketed, "wide", "'wide' is no aspect ratio"),
    ):
        with pytest.raises(UserError, match=message):
            drawing(PROMPT, num_images=1, aspect=aspect)
