"""metrics.jsonl after a kill: no lines of repeated steps and no partial ones."""

import json
import math

import numpy as np
from etils import epath
from tensorboardX.proto import event_pb2

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


def test_what_is_not_finite_is_null(tmp_path):
    log = RunLog(epath.Path(tmp_path), "base", 0)
    log.scalars(3, {"loss": math.nan, "loss_by_logsnr": {"above_6": math.inf, "2_to_6": 1.0}})
    log.close()
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert "NaN" not in line and "Infinity" not in line
    record = json.loads(line)
    assert record["loss"] is None
    assert record["loss_by_logsnr"] == {"above_6": None, "2_to_6": 1.0}


def test_bytes_that_are_no_text_are_dropped(tmp_path):
    path = epath.Path(tmp_path) / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\0\0\n{"step": 2}\n')
    truncate_jsonl(path, 5)
    assert steps(path) == [1, 2]


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    log = RunLog(epath.Path(tmp_path), "base", 6)
    log.scalars(7, {"loss": 0.5, "loss_by_logsnr": {"above_6": 1.0}})
    log.image(7, "samples", np.zeros((4, 4, 3), np.uint8))
    log.close()
    [file] = (tmp_path / "tensorboard").iterdir()
    events = read_events(file.read_bytes())
    assert [event.step for event in events] == [0, 7, 7, 7, 7]
    assert events[1].session_log.status == event_pb2.SessionLog.START
    tags = [value.tag for event in events for value in event.summary.value]
    assert tags == ["loss", "loss_by_logsnr/above_6", "samples"]


def read_events(data: bytes) -> list[event_pb2.Event]:
    """A TFRecord file: length (8 bytes), its checksum (4), content, its checksum (4), again."""
    events = []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events
