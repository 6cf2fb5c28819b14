"""Writes files so that neither a kill nor a full disk leaves a partial one.

Paths are local or in an object store (`gs://bucket/...`), both as `etils.epath.Path`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from imagen_jax.errors import UserError

# Messages of the system: no space, no quota, or a limit of file sizes (`ulimit -f`).
_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_UNWRITABLE = tuple(
    os.strerror(code)
    for code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EIO, errno.ESTALE)
)


def is_remote(path: epath.Path) -> bool:
    """Whether `path` is in an object store, which cannot append, rename or link."""
    return "://" in os.fspath(path)


def absolute(path: epath.Path) -> epath.Path:
    """The absolute form of a local path; remote paths are absolute."""
    return path if is_remote(path) else path.resolve()


def temporary_beside(path: epath.Path) -> epath.Path:
    """A path `.NAME.*.tmp` in the same directory, unique also across machines."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:16]}.tmp"


def write_atomically(path: epath.Path, data: bytes) -> None:
    """Writes a temporary file and renames it, so that readers find the old file or the new one.

    An object store shows a file only once it is complete, so there it is written in place.

    Raises:
      OSError: the file could not be written; `path` is unchanged and no temporary file is left.
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
    """Turns the errors with which libraries report a full disk into one message.

    Raises:
      UserError: a file below `directory` could not be written for lack of space.
    """
    try:
        yield
    except Exception as error:
        if not _no_space(error):
            raise
        raise UserError(
            f"no space is left to write to {directory} (or a quota or a limit of file sizes is "
            "reached). What was saved before is whole: make space, then run the same command "
            "again; it continues from there"
        ) from error


@contextlib.contextmanager
def explain_write_errors(directory: epath.Path) -> Iterator[None]:
    """Turns errors of the file system below `directory` into one message.

    Raises:
      UserError: a file could not be written or read: no space, no permission, a read-only file
        system, or the directory is gone, for example.
    """
    try:
        with explain_full_disk(directory):
            yield
    except UserError:
        raise
    except Exception as error:
        reason = _file_error(error, os.fspath(directory))
        if reason is None:
            raise
        raise UserError(
            f"{reason}. What was saved before is whole: correct this, or give another --workdir, "
            "then run the same command again"
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and its causes."""
    seen = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _file_error(error: BaseException, directory: str) -> str | None:
    """What happened to which file below `directory`; None if no cause is an error of a file."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno and cause.filename is not None:
            path = os.fsdecode(cause.filename)
            # A parent of the directory may be the one that cannot be written.
            if path and (path.startswith(directory) or directory.startswith(path)):
                return f"{path}: {cause.strerror}"
        # TensorStore has the reason in its text alone.
        for reason in _UNWRITABLE:
            if directory in str(cause) and reason in str(cause):
                return f"{directory}: {reason}"
        # Orbax has other errors for files that were removed while it wrote them.
        for path in re.findall(re.escape(directory) + r"/[^\s:;,'\"]+", str(cause)):
            if not os.path.lexists(path):
                return f"{path} is gone"
    return None


def _no_space(error: BaseException) -> bool:
    """Whether the text of `error` or of one of its causes reports a full disk."""
    return any(text in str(cause) for cause in _causes(error) for text in _FULL)
