"""Weights without the base stage end the command with a message."""

import argparse

import pytest

from benchmarks.denoising_error import load_denoisers


@pytest.mark.parametrize(
    "directory, stage, message",
    [
        ("nowhere", "base", "no weights in nowhere"),
        ("imagen_jax/weights/shapes", "sr256", "has no stage 'sr256', only base, sr64"),
        ("imagen_jax/weights/shapes", "sr64", "'sr64' is a super-resolution stage"),
    ],
)
def test_a_missing_base_stage_is_one_message(directory, stage, message, capsys):
    with pytest.raises(SystemExit):
        load_denoisers(argparse.ArgumentParser(), [directory], stage)
    assert message in capsys.readouterr().err
