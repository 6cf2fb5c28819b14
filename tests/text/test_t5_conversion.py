"""Torch checkpoints to safetensors: the same encoder comes out."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
from test_t5 import TINY, random_params

from imagen_jax.cli import convert_t5
from imagen_jax.errors import UserError
from imagen_jax.text import hf_files, t5_load
from imagen_jax.text.encoder import EMBEDDED

pytestmark = [pytest.mark.parity, pytest.mark.slow]


@pytest.fixture
def source(tmp_path):
    """TINY as torch writes a whole T5: float32, tied embeddings under two names, a decoder."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    directory = tmp_path / "source"
    directory.mkdir()
    t5_load.save_params(directory, TINY, random_params(TINY))
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    tensors["decoder.final_layer_norm.weight"] = torch.zeros(3)
    torch.save(tensors, directory / "pytorch_model.bin")
    shutil.copy(EMBEDDED["embedded"] / "spiece.model", directory)
    return directory


def run(*arguments):
    return convert_t5.main([str(argument) for argument in arguments])


def test_it_gives_the_same_parameters_in_one_file_or_several(source, tmp_path):
    expected = jax.tree.map(np.asarray, random_params(TINY))
    assert run(f"--source={source}", f"--out={tmp_path / 'one'}", "--dtype=float32") == 0
    jax.tree.map(
        np.testing.assert_array_equal, t5_load.load_params(tmp_path / "one", TINY), expected
    )
    several = tmp_path / "several"
    flags = ("--dtype=float32", "--shard_gb=0.000004")
    assert run(f"--source={source}", f"--out={several}", *flags) == 0
    files = hf_files.weight_files(several)
    assert len(files) > 2
    jax.tree.map(np.testing.assert_array_equal, t5_load.load_params(several, TINY), expected)
    hf_files.check_checksums(several)
    files[1].write_bytes(files[1].read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=files[1].name):
        hf_files.check_checksums(several)


def test_bfloat16_by_default_and_old_or_sharded_torch_files(source, tmp_path):
    import torch

    assert run(f"--source={source}", f"--out={tmp_path / 'half'}") == 0
    loaded = t5_load.load_params(tmp_path / "half", TINY)
    rounded = t5_load.load_params(tmp_path / "half", TINY, "bfloat16")
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(np.float32, rounded))

    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"pytorch_model-{number}.bin"
        torch.save(
            {name: tensors[name] for name in part},
            source / file,
            _use_new_zipfile_serialization=bool(number),
        )
        weight_map |= dict.fromkeys(part, file)
    (source / "pytorch_model.bin").unlink()
    (source / convert_t5.TORCH_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert run(f"--source={source}", f"--out={tmp_path / 'again'}") == 0
    for file in (tmp_path / "half").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_what_cannot_be_converted_is_one_message(source, tmp_path, capsys, monkeypatch):
    def message(*arguments):
        assert run(*arguments) == 2
        return capsys.readouterr().err

    out = f"--out={tmp_path / 'out'}"
    # Loading points here, and here at what is missing.
    with pytest.raises(UserError, match=r"python -m imagen_jax\.cli\.convert_t5 --source="):
        t5_load.load_params(source, TINY)
    assert "neither" in message("--source=/nowhere", out)
    data = (source / "pytorch_model.bin").read_bytes()
    (source / "pytorch_model.bin").write_bytes(data[:1000])
    assert "pytorch_model.bin cannot be read" in message(f"--source={source}", out)
    (source / "pytorch_model.bin").unlink()
    assert "nothing to convert" in message(f"--source={source}", out)
    assert "holds weights already" in message(f"--source={source}", f"--out={EMBEDDED['embedded']}")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'imagen-jax[convert]'" in message(f"--source={source}", out)
