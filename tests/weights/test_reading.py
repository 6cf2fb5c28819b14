"""Weights from strangers: each malformed export ends in one message that names what is wrong."""

import hashlib
import json
import os
import struct

import numpy as np
import pytest
from export_fuzz import run
from safetensors.numpy import load, save

from imagen_jax.errors import UserError
from imagen_jax.weights import artefact, reading


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    artefact.save_cascade(directory, tiny)
    return directory


@pytest.fixture
def export(whole, tmp_path):
    """A copy of the export; `config.json` as an object is changed by `edit`."""
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit(directory, change):
    path = directory / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refuse(directory, message):
    with pytest.raises(UserError, match=message) as error:
        reading.load(directory)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "name", ["../../x", "/x", "a/b", "a b", "", "*", "é", "x" * 65, "..", "base.", "base\n"]
)
def test_stage_names_that_are_paths(export, name):
    def rename(content):
        for group in (content["cascade"]["stages"], content["stages"]):
            group[name] = group.pop("base")

    edit(export, rename)
    refuse(export, "the name ")


@pytest.mark.parametrize("name", ["../base.safetensors", "/dev/zero", "sub/x", "", None, 5, []])
def test_file_names_that_are_paths(export, name):
    edit(export, lambda content: content["stages"]["base"].update(file=name))
    refuse(export, "not a plain file name")


@pytest.mark.parametrize("name", ["config.json", "base.safetensors"])
@pytest.mark.parametrize("run_directory", [False, True])
def test_pipes_devices_and_directories_are_not_read(export, name, run_directory):
    if run_directory:
        ema = export / "base" / "ema"
        ema.mkdir(parents=True)
        for file in list(export.glob("*.*")):
            file.rename(ema / file.name)
    path = next(export.rglob(name))
    for make, message in (
        (lambda: os.mkfifo(path), "is a pipe"),
        (lambda: path.symlink_to("/dev/zero"), "is a device"),
        (path.mkdir, "is a directory|no weights in"),
    ):
        path.unlink()
        make()
        refuse(export, message)


WRONG = [
    (["stages"], 5, "'stages' must be an object, not 5"),
    (["stages"], [], "'stages' must be an object"),
    (["stages", "base"], 5, "'base' must be an object"),
    (["stages", "other"], {}, "stage 'other', which its cascade lacks"),
    (["stages", "base", "sha256"], 5, "'sha256' must be a string"),
    (["stages", "base", "num_parameters"], 0, "num_parameters=0 must be at least 1"),
    (["stages", "base", "num_parameters"], 10**7, "but config.json says 10,000,000"),
    (["stages", "base", "num_parameters"], 7, "holds .* parameters, but config.json says 7"),
    (["stages", "base", "images_seen"], -1, "images_seen=-1 must be"),
    (["stages", "base", "images_seen"], 10**400, "must be at least 0 and below"),
    (["stages", "base", "steps"], 1.5, "'steps' must be a whole number, not 1.5"),
    (["stages", "base", "steps"], True, "'steps' must be a whole number, not True"),
    (["stages", "base", "training"], None, "'training' must be an object"),
    (["stages", "base", "training"], {"shapes": 3}, "'shapes' must be an object"),
    (["stages", "base", "training"], {"shapes": {"1:1": [2**40, 1]}}, "the shape of 1:1"),
    (["stages", "base", "training"], {"shapes": {"1:1": [8]}}, "the shape of 1:1"),
    (["text"], "x", "'text' must be an object"),
    (["text", "encoder_identity"], 5, "'encoder_identity' must be a string"),
    (["text", "tokenizer_hash"], None, "'tokenizer_hash' must be a string"),
    (["cascade"], None, "'cascade' must be an object"),
    (["format_version"], True, "format version True"),
    (["format_version"], [1], r"format version \[1\]"),
    (["cascade", "stages"], [], "config.stages must be a group"),
    (["cascade", "seed"], 10**400, "config.seed=.* 64 bits"),
    (["cascade", "stages", "base", "train", "learning_rate"], 10**400, "learning_rate=.* 64 bits"),
    (["cascade", "stages", "base", "model", "kind"], [1], r"kind=\[1\] must be one of"),
    (["cascade", "stages", "base", "model", "channels"], [10**9, 8], "at most 131072"),
    (["cascade", "stages", "base", "model", "num_res_blocks"], [10**9, 1], "at most 128"),
    (["cascade", "stages", "base", "model", "channels"], [8] * 5000, "5000 entries"),
    (["cascade", "stages", "base", "sample"], {"sampler": "ddim", "guidance_weight": 1}, "earlier"),
    (["cascade", "text", "max_length"], 10**12, "max_length=.* at most 65536"),
    (["cascade", "data", "aspect_buckets"], ["9" * 400 + ":1"], "aspect"),
]


@pytest.mark.parametrize(("keys", "value", "message"), WRONG, ids=[m for _, _, m in WRONG])
def test_wrong_values_in_config_json(export, keys, value, message):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    edit(export, change)
    refuse(export, message)


def header(data, change):
    """The content of a safetensors file with another header."""
    size = struct.unpack("<Q", data[:8])[0]
    text = json.dumps(change(json.loads(data[8 : 8 + size]))).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def of_type(name, size):
    """A change of the header to tensors of another type with `size` bytes a number."""

    def change(entries):
        for entry in entries.values():
            if "dtype" in entry:
                first, *rest = entry["shape"]
                entry.update(dtype=name, shape=[first * 2 // size, *rest])
        return entries

    return lambda data: header(data, change)


def converted(dtype):
    return lambda data: save({name: value.astype(dtype) for name, value in load(data).items()})


def with_tensor(name):
    def change(data):
        tensors = load(data)
        return save({**tensors, name: np.zeros(2, np.float16)})

    return change


MALFORMED = {
    "empty": (lambda data: b"", "it is empty"),
    "cut in the header": (lambda data: data[:100], "not a whole safetensors file"),
    "cut in the tensors": (lambda data: data[:-100], "not a whole safetensors file"),
    "longer": (lambda data: data + b"x", "not a whole safetensors file"),
    "size of the header": (lambda data: b"\xff" * 8 + data[8:], "not a whole safetensors file"),
    "a pickle": (lambda data: b"\x80\x04\x95.", "not a whole safetensors file"),
    "git-lfs": (lambda data: b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "a list as header": (lambda data: header(data, lambda h: [1]), "not a whole safetensors"),
    "unknown type": (of_type("XX", 2), "not a whole safetensors file"),
    "bfloat16": (of_type("BF16", 2), "holds 'BF16': weights are float16 or float32"),
    "float8": (of_type("F8_E4M3", 1), "holds 'F8_E4M3': weights are float16 or float32"),
    "int8": (converted(np.int8), "holds int8: weights are float16 or float32"),
    "bool": (converted(bool), "holds bool: weights are float16 or float32"),
    "complex": (converted(np.complex64), "holds complex64: weights are float16 or float32"),
    "group and parameter": (with_tensor("head"), "'head(/.*)?' is both a parameter and a group"),
    "deep name": (with_tensor("/".join("a" * 50_000)), "no name of a parameter"),
    "empty name": (with_tensor(""), "no name of a parameter"),
    "control characters": (with_tensor("a\x1b[2J"), "no name of a parameter"),
    "another tensor": (with_tensor("more"), "holds .* parameters, but config.json says"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_safetensors_whose_hash_fits(export, case):
    change, message = MALFORMED[case]
    data = change((export / "base.safetensors").read_bytes())
    (export / "base.safetensors").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit(export, lambda content: content["stages"]["base"].update(sha256=digest))
    refuse(export, message)


def test_a_file_with_gaps_is_not_read_whole(export):
    os.truncate(export / "base.safetensors", 2**41)
    refuse(export, "2,199,023,255,552 bytes, but such a file has at most")


def test_a_loss_that_diverged_does_not_make_weights_unreadable(export):
    def change(content):
        content["stages"]["base"]["training"]["loss"] = float("nan")

    edit(export, change)
    assert np.isnan(reading.load(export).stages["base"].training["loss"])


def test_malformed_exports_load_or_are_refused(tiny, tmp_path):
    result = run(tiny, 40, 0, tmp_path, every_key=60)
    assert result["cases"] > 60
    assert set(result["outcomes"]) == {"loads", "UserError"}
