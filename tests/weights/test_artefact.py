"""The weights format: what is written is what is read, and damage is noticed."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax.config import load_config, to_json_dict
from imagen_jax.errors import UserError
from imagen_jax.weights import artefact as lib
from imagen_jax.weights import reading
from imagen_jax.weights.shipped import load_shipped

PARAMS = {
    "down_0": {"blocks": {"kernel": np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)}},
    "head": {"bias": np.array([1e-3, 1.0], np.float32)},
}
SUMMARY = {"steps": 7, "images_seen": 56, "loss": 0.25}


def save(directory, config, params=PARAMS, stage="base", encoder="enc", **kwargs):
    return lib.save_stage(directory, stage, config, params, SUMMARY, encoder, "tok", **kwargs)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_stage_round_trip(tmp_path, tiny):
    save(tmp_path, tiny.config)
    loaded = reading.load(tmp_path)
    stage = loaded.stages["base"]
    assert loaded.config == tiny.config
    assert (loaded.encoder_identity, loaded.tokenizer_hash) == ("enc", "tok")
    assert (stage.steps, stage.images_seen, stage.num_parameters) == (7, 56, 14)
    assert stage.training["loss"] == 0.25
    assert_equal(stage.params, PARAMS)


def test_cascade_round_trip_rounds_to_float16(tmp_path, tiny):
    lib.save_cascade(tmp_path, tiny)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "base.safetensors",
        "config.json",
        "sr16.safetensors",
    ]
    loaded = reading.load(tmp_path)
    for name, stage in tiny.stages.items():
        rounded = jax.tree.map(lambda p: p.astype(np.float16).astype(np.float32), stage.params)
        assert_equal(loaded.stages[name].params, rounded)
        assert loaded.stages[name].images_seen == stage.images_seen
        assert loaded.stages[name].num_parameters == stage.num_parameters


def test_hash_depends_on_the_values_alone(tmp_path, tiny):
    reversed_order = dict(reversed(PARAMS.items()))
    other = {**PARAMS, "head": {"bias": np.array([1e-3, 1.5], np.float32)}}
    paths = [
        save(tmp_path / str(i), tiny.config, params)
        for i, params in enumerate((PARAMS, reversed_order, other))
    ]
    assert paths[0].name == paths[1].name != paths[2].name


def test_saving_again_replaces_the_old_weights(tmp_path, tiny):
    first = save(tmp_path, tiny.config)
    new = jax.tree.map(lambda p: p + 1, PARAMS)
    second = save(tmp_path, tiny.config, new)
    assert not first.exists() and second.exists()
    assert_equal(reading.load(tmp_path).stages["base"].params, new)
    assert len(list(tmp_path.iterdir())) == 2  # no temporary file is left


def test_a_save_that_stops_half_way_leaves_the_old_weights(tmp_path, tiny, monkeypatch):
    save(tmp_path, tiny.config)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(lib, "_write_config", stop)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, tiny.config, jax.tree.map(lambda p: p + 1, PARAMS))
    assert_equal(reading.load(tmp_path).stages["base"].params, PARAMS)


def test_reading_while_the_weights_are_replaced(tmp_path, tiny, monkeypatch):
    save(tmp_path, tiny.config)
    new = jax.tree.map(lambda p: p + 1, PARAMS)
    original, calls = reading._read_weights, []

    def replaced_in_between(directory, record, config):
        if not calls:
            calls.append(save(tmp_path, tiny.config, new))
        return original(directory, record, config)

    monkeypatch.setattr(reading, "_read_weights", replaced_in_between)
    assert_equal(reading.load(tmp_path).stages["base"].params, new)


def test_workdir_joins_stages_with_their_own_configs(tmp_path, tiny):
    stages = dict(tiny.config.stages)
    stages["sr16"] = dataclasses.replace(
        stages["sr16"], sample=dataclasses.replace(stages["sr16"].sample, num_steps=9)
    )
    changed = dataclasses.replace(tiny.config, stages=stages)
    save(tmp_path / "base" / "ema", tiny.config)
    save(tmp_path / "sr16" / "ema", changed, stage="sr16")
    loaded = reading.load(tmp_path)
    assert sorted(loaded.stages) == ["base", "sr16"]
    assert loaded.config.stages["base"].sample.num_steps == 3
    assert loaded.config.stages["sr16"].sample.num_steps == 9
    assert list(reading.load(tmp_path / "sr16").stages) == ["sr16"]


def test_workdir_with_two_text_encoders(tmp_path, tiny):
    save(tmp_path / "base" / "ema", tiny.config)
    save(tmp_path / "sr16" / "ema", tiny.config, stage="sr16", encoder="other")
    with pytest.raises(UserError, match="different text encoders"):
        reading.load(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="python train"):
        reading.load(tmp_path)
    with pytest.raises(UserError, match="no weights in"):
        reading.load(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        reading.load(tmp_path / "file")


def test_damage_is_noticed(tmp_path, tiny):
    path = save(tmp_path, tiny.config)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="damaged"):
        reading.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        reading.load(tmp_path)


def test_wrong_config_json(tmp_path, tiny):
    save(tmp_path, tiny.config)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    for text, message in (
        (json.dumps(content | {"format_version": 99}), "format version 99"),
        (json.dumps({k: v for k, v in content.items() if k != "text"}), "'text'"),
        ("{", "not valid JSON"),
        ("[]", "instead of a JSON object"),
        ("{}", "not the configuration of an artefact"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            reading.load(tmp_path)


def test_float16_overflow(tmp_path, tiny):
    large = {"a": np.array([1e5], np.float32)}
    with pytest.raises(UserError, match="beyond float16"):
        save(tmp_path, tiny.config, large, dtype="float16")
    save(tmp_path, tiny.config, large)


def test_check_params_names_what_differs():
    expected = {"a": np.zeros((2, 3)), "b": np.zeros(4)}
    lib.check_params("base", {"a": np.ones((2, 3)), "b": np.ones(4)}, expected)
    with pytest.raises(UserError) as error:
        lib.check_params("base", {"a": np.zeros((3, 2)), "c": np.zeros(1)}, expected)
    for part in ("b is missing", "c is not a parameter", "a is (3, 2) and should be (2, 3)"):
        assert part in str(error.value)


def test_few_images():
    # Imagen's base model: 2 G parameters, 2.5 M steps of 2048 images. A toy: 100 k of 3 M.
    assert 0.3 < lib.typical_images(2_000_000_000) / (2_500_000 * 2048) < 3
    assert lib.few_images(5_000_000_000, 2_000_000_000) is None
    assert "1,000" in lib.few_images(1_000, 3_000_000)


def test_shipped_names_are_plain_names():
    assert load_shipped("../sampling") is None
    assert load_shipped("no-such-name") is None


def test_an_artefact_of_version_1_loads(tmp_path):
    config = load_config("configs/tiny.py")
    save(tmp_path, config)
    path = tmp_path / lib.CONFIG_FILE
    content = json.loads(path.read_text())
    saved = json.loads((Path(__file__).parents[1] / "version_1.json").read_text())
    content |= {"format_version": 1, "cascade": saved["tiny"]}
    path.write_text(json.dumps(content))
    expected = to_json_dict(config)
    for stage in expected["stages"].values():
        stage["model"]["shared_key_bias"] = True  # which version 1 always had
    assert to_json_dict(reading.load(tmp_path).config) == expected
