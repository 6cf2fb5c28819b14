"""metrics.jsonl after a kill: no lines of a lost future, none cut short."""

import json

from etils import epath

from imagen_jax.training.logs import RunLog, truncate_jsonl


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_beyond_the_checkpoint_and_a_cut_line_are_dropped(tmp_path):
    path = epath.Path(tmp_path) / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 8)) + '{"step": 8, "lo')
    truncate_jsonl(path, 5)
    assert steps(path) == [1, 2, 3, 4, 5]
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_run_without_a_file_starts_one(tmp_path):
    log = RunLog(epath.Path(tmp_path), "base", 0)
    log.scalars(3, {"loss": 0.5, "loss_by_logsnr": {"above_6": 1.0}})
    log.close()
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert record == {"step": 3, "stage": "base", "loss": 0.5, "loss_by_logsnr": {"above_6": 1.0}}
    assert list((tmp_path / "tensorboard").iterdir())
