"""One run at a time in a stage's directory: processes, other machines, no locks, a bucket."""

import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from imagen_jax.errors import UserError
from imagen_jax.training import lock as lib
from imagen_jax.training.lock import Holder, StageLock

ELSEWHERE = Holder(
    host="node7", process=4321, machine="other", since="2026-01-31 09:00 UTC", token="t", beat=3
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lib, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lib, "STALE_SECONDS", 0.6)


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path)


@pytest.fixture
def no_flock(monkeypatch):
    """A file system without locks."""

    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def take(directory) -> tuple[StageLock, list[str]]:
    lines: list[str] = []
    return StageLock(directory, lines.append), lines


def write(directory, holder: Holder) -> None:
    (directory / lib.NAME).write_text(json.dumps(dataclasses.asdict(holder)))


def test_a_second_run_is_refused_with_the_name_of_the_first(directory):
    first, lines = take(directory)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on .* since 20"):
        take(directory)
    first.check()
    first.close()
    assert not lines and not list(directory.iterdir())
    take(directory)[0].close()


def test_the_lock_of_a_killed_run_is_free_at_once(directory):
    code = (
        "import sys, time\nfrom etils import epath\n"
        "from imagen_jax.training.lock import StageLock\n"
        f"StageLock(epath.Path({os.fspath(directory)!r}), print)\n"
        "print('held', flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {process.pid} on"):
        take(directory)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    start = time.monotonic()
    found, lines = take(directory)
    found.close()
    assert not lines and time.monotonic() - start < 0.5


def test_another_machine_that_is_alive_is_noticed_where_its_flock_is_not_seen(directory):
    write(directory, ELSEWHERE)

    def live():
        time.sleep(0.2)
        write(directory, dataclasses.replace(ELSEWHERE, beat=4))

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(UserError, match="process 4321 on node7 since 2026-01-31"):
        take(directory)
    thread.join()


def test_the_lock_of_a_machine_that_died_is_taken_over(directory):
    write(directory, ELSEWHERE)
    found, lines = take(directory)
    assert "node7" in lines[0] and "ended" in lines[1]
    assert json.loads((directory / lib.NAME).read_text())["process"] == os.getpid()
    found.close()


def test_a_lock_that_a_server_keeps_for_a_dead_machine_is_taken_over(directory):
    write(directory, ELSEWHERE)
    with open(directory / lib.NAME) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found, lines = take(directory)
        assert "ended" in lines[1]
        found.close()


def test_without_flock_the_sign_of_life_decides(directory, no_flock):
    first, _ = take(directory)
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        take(directory)
    first.close()
    assert not list(directory.iterdir())


def test_a_run_that_was_suspended_learns_that_it_lost_the_lock(directory):
    first, _ = take(directory)
    write(directory, ELSEWHERE)
    time.sleep(0.3)
    with pytest.raises(UserError, match="taken over by process 4321 on node7"):
        first.check()
    first.close()
    # It belongs to the other one.
    assert (directory / lib.NAME).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff\xfe"])
def test_a_file_that_names_nobody_locks_nobody_out(directory, content):
    (directory / lib.NAME).write_bytes(content)
    found, lines = take(directory)
    found.close()
    assert not lines


def test_no_descriptor_is_left_open(directory):
    before = len(os.listdir("/proc/self/fd"))
    found, _ = take(directory)
    for _ in range(3):
        with pytest.raises(UserError):
            take(directory)
    found.close()
    assert len(os.listdir("/proc/self/fd")) == before
