"""Lets one run at a time write to a stage's directory.

The file `lock.json` in the directory names its holder. Two mechanisms keep a second run out:

- The holder has an exclusive `flock` on the file. The kernel drops it when the process ends or is
  killed, so that the next run on the same machine can start at once.
- The holder rewrites the file every `BEAT_SECONDS`. Object stores have no `flock`, and some shared
  file systems apply it to each machine on its own. So a run that finds the name of another machine
  waits for `STALE_SECONDS` and goes on only if the file has not changed. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from etils import epath

from imagen_jax.errors import UserError
from imagen_jax.files import is_remote
from imagen_jax.parallel.agreement import Agreement
from imagen_jax.parallel.distributed import is_main

NAME = "lock.json"
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
# The file has this many bytes and is written in one call, so that no reader finds half of it.
_SIZE = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock.

    Attributes:
      host, process: for people.
      machine: identifies the running kernel; equal in all its containers.
      since: when the lock was taken, for people.
      token: of this lock alone.
      beat: counts the rewrites of the file.
    """

    host: str
    process: int
    machine: str
    since: str
    token: str
    beat: int = 0

    @classmethod
    def here(cls) -> Holder:
        """A new holder: this process."""
        now = datetime.datetime.now(datetime.UTC)
        return cls(
            host=platform.node(),
            process=os.getpid(),
            machine=_machine(),
            since=f"{now:%Y-%m-%d %H:%M} UTC",
            token=uuid.uuid4().hex,
        )

    def describe(self) -> str:
        """Such as "process 17 on node3 since 2026-01-31 09:00 UTC"."""
        return f"process {self.process} on {self.host} since {self.since}"


class StageLock:
    """Held from its construction until `close`.

    Args:
      directory: of the stage; it exists.
      print_line: prints a line.

    Raises:
      UserError: another run holds the lock.
      OSError: the directory cannot be written.
    """

    def __init__(self, directory: epath.Path, print_line: Callable[[str], None]):
        self._directory = directory
        self._path = directory / NAME
        self._print_line = print_line
        self._holder = Holder.here()
        self._lost_to: Holder | None = None
        # Of the lock file; None in an object store.
        self._file: int | None = None
        try:
            if is_remote(directory):
                self._wait_for_sign_of_life()
                is_locked = False
            else:
                self._file, is_locked = self._open_file()
            self._write()
            if not is_locked:
                # Two runs may have found the name of none at the same time.
                time.sleep(min(1.0, BEAT_SECONDS))
                if (found := self._read()) is not None and found.token != self._holder.token:
                    raise self._refusal(found)
        except BaseException:
            self._release()
            raise
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises UserError if another run has taken the lock, because this one was suspended."""
        if self._lost_to is not None:
            raise UserError(
                f"{self._directory} was taken over by {self._lost_to.describe()}, while this "
                "process gave no sign of life. It ends without another save, so that the two do "
                "not mix their files"
            )

    def close(self) -> None:
        """Gives the lock back."""
        self._closing.set()
        self._thread.join()
        if self._lost_to is None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._release()

    def _open_file(self) -> tuple[int, bool]:
        """Opens the file once nobody holds it. The result says whether it has a `flock`."""
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                is_locked, is_taken = _try_flock(file)
                if is_locked and not self._is_current(file):
                    # Its holder has just removed it.
                    os.close(file)
                    continue
                found = self._read()
                is_near = found is None or found.machine == self._holder.machine
                if is_taken and is_near:
                    raise self._refusal(found)
                if not is_locked or not is_near:
                    self._wait_for_sign_of_life()
            except BaseException:
                os.close(file)
                raise
            if not is_taken:
                return file, is_locked
            # A server of files keeps the lock of a machine that has died for a while. A new file
            # has a new lock.
            os.close(file)
            self._path.unlink(missing_ok=True)

    def _wait_for_sign_of_life(self) -> None:
        """Returns once the file was the same for a while; raises UserError if it changes."""
        first = self._read()
        if first is None:
            return
        self._print_line(
            f"  {self._path} names {first.describe()}; waiting up to {STALE_SECONDS:.0f} s for a "
            "sign of life of that run"
        )
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, STALE_SECONDS / 20))
            found = self._read()
            if found is None:
                return
            if found != first:
                raise self._refusal(found)
        self._print_line("  there was none: it has ended")

    def _refusal(self, holder: Holder | None) -> UserError:
        who = "another process" if holder is None else holder.describe()
        return UserError(
            f"{self._directory} is in use by {who}. Two runs would overwrite each other's files: "
            "wait for the other one, or stop it, or give another --workdir"
        )

    def _read(self) -> Holder | None:
        """The holder that the file names; None if there is none."""
        try:
            content = json.loads(self._path.read_bytes())
            return Holder(**content)
        except (OSError, ValueError, TypeError):
            return None

    def _write(self) -> None:
        data = json.dumps(dataclasses.asdict(self._holder)).encode().ljust(_SIZE)
        if self._file is None:
            self._path.write_bytes(data)
            return
        os.pwrite(self._file, data, 0)
        # So that other machines see it.
        os.fsync(self._file)

    def _is_current(self, file: int) -> bool:
        """Whether the open file is the one that the path names."""
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _beat(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            found = self._read()
            if found is not None and found.token != self._holder.token:
                self._lost_to = found
                return
            self._holder = dataclasses.replace(self._holder, beat=self._holder.beat + 1)
            # A server that does not answer for a while is no reason to end the run.
            with contextlib.suppress(OSError):
                self._write()

    def _release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _try_flock(file: int) -> tuple[bool, bool]:
    """Whether the file could be locked, and whether another process has locked it.

    Both are False where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False, True
    except OSError:
        return False, False
    return True, False


def _machine() -> str:
    """Identifies the running kernel."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def lock_stage(
    directory: epath.Path, agreement: Agreement, print_line: Callable[[str], None]
) -> StageLock | None:
    """Takes the lock of a stage's directory in process 0, for all processes; None in the others.

    Raises:
      UserError: another run holds the lock; in all processes.
      OSError: the directory cannot be written; in process 0.
    """
    lock, reason = None, ""
    if is_main():
        try:
            lock = StageLock(directory, print_line)
        except UserError as error:
            reason = str(error)
    if reason := agreement.from_main(reason):
        raise UserError(reason)
    return lock
