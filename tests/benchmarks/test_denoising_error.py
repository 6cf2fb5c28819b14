"""The benchmarks of base stages end with a message where there is none."""

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
def test_what_is_no_base_stage_is_told_in_one_line(directory, stage, message, capsys):
    with pytest.raises(SystemExit):
        load_denoisers(argparse.ArgumentParser(), [directory], stage)
    assert message in capsys.readouterr().err
