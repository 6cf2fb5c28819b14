"""Which encoder `python -m imagen_jax.cli.convert_t5` converts; tests/text has the conversion."""

import pytest

from imagen_jax.cli import convert_t5


@pytest.fixture
def converted(monkeypatch):
    calls = []
    monkeypatch.setattr(convert_t5, "convert", lambda *arguments: calls.append(arguments))
    return calls


def test_the_source_is_the_encoder_of_the_config_by_default(tmp_path, converted, capsys):
    flags = [f"--out={tmp_path}", "--config=tiny", "--config.text.encoder=/models/t5"]
    assert convert_t5.main(flags) == 0
    assert convert_t5.main([*flags, "--source=/other", "--dtype=float32", "--shard_gb=0.5"]) == 0
    assert converted == [
        ("/models/t5", tmp_path, "bfloat16", 4_000_000_000),
        ("/other", tmp_path, "float32", 500_000_000),
    ]


def test_what_is_missing_is_named(tmp_path, converted, capsys):
    assert convert_t5.main([f"--out={tmp_path}"]) == 2
    assert "--source is needed" in capsys.readouterr().err
    assert convert_t5.main(["--source=/models/t5"]) == 2
    assert "--out is needed" in capsys.readouterr().err
    assert not converted
