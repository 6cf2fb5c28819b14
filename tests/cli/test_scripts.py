"""The scripts that start jobs: what they pass on, and with which status they end."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# Stands in for the training: tells that it runs and with what, and ends as the test says.
# On SIGTERM it takes its time, as one that saves does.
TRAINING = """#!/bin/bash
trap 'sleep 0.2; echo saved >> "$LOG"; exit 0' TERM
echo "${0##*/} $* ${JAX_LOCAL_DEVICE_IDS:-}" >> "$LOG"
[ "$END" = waits ] || exit "$END"
touch "$LOG.waits"
while true; do sleep 0.05; done
"""
RECORD = '#!/bin/bash\necho "${0##*/} $*" >> "$LOG"\n'


@pytest.fixture
def run(tmp_path):
    """Runs a script with stand-ins for the programs that it calls, maybe with a signal."""

    def run(script: str, end: str, sent: signal.Signals | None = None) -> tuple[int, list[str]]:
        programs = tmp_path / "bin"
        programs.mkdir()
        for name, text in (("python", TRAINING), ("srun", TRAINING), ("scontrol", RECORD)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        log = tmp_path / "log"
        environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "LOG": str(log),
            "END": end,
            "SLURM_JOB_ID": "7",
            "SLURM_GPUS_ON_NODE": "3",
        }
        environment.pop("JAX_LOCAL_DEVICE_IDS", None)
        command = ["bash", str(ROOT / "scripts" / script), "--config=c", "--workdir=a b"]
        process = subprocess.Popen(command, env=environment)
        if sent:
            while not log.with_name("log.waits").exists():
                assert process.poll() is None
            process.send_signal(sent)
        return process.wait(timeout=60), log.read_text().splitlines()

    return run


@pytest.mark.parametrize(
    "end, status", [("0", 0), ("2", 2), ("1", 42), ("3", 42), ("130", 42), ("134", 42)]
)
def test_a_pod_ends_with_what_tells_whether_to_start_again(run, end, status):
    assert run("gke.sh", end) == (
        status,
        ["python -u train.py --distributed --config=c --workdir=a b "],
    )


def test_a_pod_that_is_taken_away_saves_and_comes_back(run):
    status, log = run("gke.sh", "waits", signal.SIGTERM)
    assert (status, log[1:]) == (42, ["saved"])


@pytest.mark.parametrize("end", ["0", "1", "134"])
def test_a_slurm_job_that_ends_by_itself_is_over(run, end):
    status, log = run("slurm.sbatch", end)
    assert status == int(end)
    [line] = log
    assert line.startswith("srun ") and " python -u train.py --distributed --config=c" in line
    assert line.endswith("--workdir=a b 0,1,2")


def test_a_slurm_job_at_its_time_limit_saves_and_queues_again(run):
    status, log = run("slurm.sbatch", "waits", signal.SIGUSR1)
    assert (status, log[1:]) == (0, ["saved", "scontrol requeue 7"])
