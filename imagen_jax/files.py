"""Writing files so that neither a kill nor a full disk leaves half of one behind.

Paths are local or of an object store (`gs://bucket/...`), both as `etils.epath.Path`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from imagen_jax.errors import UserError

# No space, no quota, or a limit on the size of a file (of the file system, or `ulimit -f`).
_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def is_remote(path: epath.Path) -> bool:
    """Whether `path` lies in an object store: no appending, no renaming, no links."""
    return "://" in os.fspath(path)


def absolute(path: epath.Path) -> epath.Path:
    """`path`, if it is local, independent of the working directory."""
    return path if is_remote(path) else path.resolve()


def temporary_beside(path: epath.Path) -> epath.Path:
    """A new name beside `path`, `.NAME.*.tmp`, also among processes of several machines."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:16]}.tmp"


def write_atomically(path: epath.Path, data: bytes) -> None:
    """Writes `data` beside `path` and renames it: a reader finds the old file or the new one.

    In an object store a file appears once it is whole, so it is written in place.

    Raises:
      OSError: it could not be written; `path` is what it was, and nothing lies beside it.
    """
    if is_remote(path):
        path.write_bytes(data)
        return
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: epath.PathLike, content: Any) -> None:
    """Writes JSON for people to read, as `write_atomically` does."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(epath.Path(path), text.encode("utf-8"))


@contextlib.contextmanager
def explain_full_disk(directory: epath.Path) -> Iterator[None]:
    """Turns the many ways in which libraries report a full disk into one message.

    Raises:
      UserError: something below `directory` could not be written for lack of space.
    """
    try:
        yield
    except Exception as error:
        if not _no_space(error):
            raise
        raise UserError(
            f"no space is left to write to {directory} (or a quota or a limit of file sizes is "
            "reached). What was saved before is whole: make space, then run the same command "
            "again; it goes on from there"
        ) from error


def _no_space(error: BaseException | None) -> bool:
    """Whether `error` or what led to it says so. TensorStore has only the words of the system."""
    seen = set()
    while error is not None and id(error) not in seen:
        if any(text in str(error) for text in _FULL):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
