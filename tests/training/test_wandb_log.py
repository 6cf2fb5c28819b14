"""The log for Weights & Biases, with a stand-in for the library."""

import dataclasses
import sys
import types

import numpy as np
import pytest
from etils import epath

from imagen_jax.errors import UserError
from imagen_jax.training.logs import RunLog
from imagen_jax.training.wandb_log import check_wandb, open_wandb


class Run:
    def __init__(self):
        self.logged, self.finished = [], False

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def started(monkeypatch):
    """The runs that were started, with their arguments."""
    runs = []

    def init(**arguments):
        runs.append((Run(), arguments))
        return runs[-1][0]

    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()
    module.init, module.Image = init, lambda picture: ("image", picture.shape)
    module.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_a_run_logs_there_too_and_a_restart_continues_it(tmp_path, tiny_config, started):
    cascade = dataclasses.replace(tiny_config, wandb_project="mine")
    directory = epath.Path(tmp_path)
    for first in (0, 2):
        log = RunLog(directory, "base", first, open_wandb(directory, cascade, "base"))
        log.scalars(first + 2, {"loss": 0.5, "loss_by_logsnr": {"above_6": 1.0}})
        log.image(first + 2, "samples", np.zeros((4, 4, 3), np.uint8))
        log.close()
    run, arguments = started[0]
    assert run.finished
    assert {"loss": 0.5, "loss_by_logsnr/above_6": 1.0, "step": 2} in run.logged
    assert {"samples": ("image", (4, 4, 3)), "step": 2} in run.logged
    assert arguments["project"] == "mine" and arguments["resume"] == "allow"
    assert arguments["config"]["stages"]["base"]["resolution"] == 8
    assert len({arguments["id"] for _, arguments in started}) == 1


def test_without_a_project_or_without_the_library(tmp_path, tiny_config, monkeypatch):
    assert open_wandb(epath.Path(tmp_path), tiny_config, "base") is None
    check_wandb("")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'imagen-jax\[wandb\]'"):
        check_wandb("mine")
