"""Reads files that somebody else wrote, such as downloaded weights, without trusting them.

Nothing but regular files is read: a device never ends, and a FIFO waits for a writer. JSON is
limited in size and depth. Names of files are plain names, which cannot lead out of their directory.
"""

from __future__ import annotations

import json
import os
import re
import stat
from typing import Any

from etils import epath

from imagen_jax.errors import UserError, brief

# Configurations and indices have some kilobytes; the index of a model in 1000 files has one MB.
MAX_JSON_BYTES = 32 * 2**20
MAX_JSON_DEPTH = 32

_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
_LFS_POINTER = b"version https://git-lfs.github.com/"
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def check_file_name(name: Any, where: str) -> str:
    """Returns a file name that a file gives, for use within that file's directory.

    Args:
      name: the file's word for it.
      where: the file and the entry, for the message.

    Raises:
      UserError: it is no string, has a directory in it, or begins with a dot.
    """
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise UserError(
            f"{where} is {brief(name)}, which is not a plain file name (letters, digits and _-. "
            "without a directory): the file is damaged, or meant to do harm"
        )
    return name


def check_regular(path: os.PathLike[str], missing: str = "copy the whole directory") -> None:
    """Raises UserError unless `path` is a regular file, or a link to one, or in an object store.

    Args:
      path: of the file.
      missing: what to do if there is no such file, for the message.
    """
    if "://" in os.fspath(path):
        if not epath.Path(path).exists():
            raise UserError(f"{path} is missing: {missing}")
        return
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {missing}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{brief(os.fspath(path))} cannot be read: {reason}") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise UserError(f"{path} is {kind} and not a file: put the original file there")


def read_bytes(
    path: os.PathLike[str],
    *,
    at_most: int | None = None,
    missing: str = "copy the whole directory",
) -> bytes:
    """The content of a regular file.

    Args:
      path: of the file.
      at_most: the largest size in bytes that such a file has.
      missing: as of `check_regular`.

    Raises:
      UserError: `path` is missing, is no regular file, cannot be read, or is too large.
    """
    check_regular(path, missing)
    file = epath.Path(path)
    try:
        size = file.stat().length
        if at_most is not None and size > at_most:
            raise UserError(
                f"{path} has {size:,} bytes, but such a file has at most {at_most:,}: fetch it "
                "again"
            )
        return file.read_bytes()
    except FileNotFoundError as error:  # removed since the check
        raise UserError(f"{path} is missing: {missing}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise UserError(
            f"{path} has {size / 1e9:,.1f} GB, more than the memory that is free"
        ) from error


def read_json_object(path: os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError, see `read_bytes` and `parse_json_object`."""
    return parse_json_object(read_bytes(path, at_most=MAX_JSON_BYTES), path)


def parse_json_object(data: bytes, path: os.PathLike[str]) -> dict[str, Any]:
    """The object in the content of a JSON file in UTF-8.

    Raises:
      UserError: the file is not JSON, holds anything but an object, is more deeply nested than any
        configuration, or has names that cannot be printed or text that is no Unicode.
    """
    try:
        content = json.loads(data.decode("utf-8-sig"))
    # RecursionError: brackets nested by the thousand. ValueError: also numbers of 5000 digits.
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({explain_damage(data, error)}): fetch the file again"
        ) from error
    if strange := _what_no_configuration_holds(content):
        raise UserError(f"{path} holds {strange}, which no configuration does: fetch it again")
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds {brief(content)} instead of a JSON object: fetch the file again"
        )
    return content


def explain_damage(data: bytes, error: BaseException) -> str:
    """What is wrong with a file that starts with `data` and could not be read, in short."""
    if data.startswith(_LFS_POINTER):
        return "it is a placeholder of git-lfs; fetch the content with `git lfs pull`"
    if not data:
        return "it is empty"
    text = " ".join(str(error).split()) or type(error).__name__
    # Libraries quote what they read.
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _what_no_configuration_holds(content: Any) -> str | None:
    """What would break or flood the messages and files that a value ends up in, None if nothing."""
    level = [content]
    for _ in range(MAX_JSON_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                for name in value:
                    if len(name) > 200 or not name.isprintable():
                        return f"the name {brief(name)}"
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and re.search("[\ud800-\udfff]", value):
                return f"the text {brief(value)} with half of a character"
        level = below
    return f"more than {MAX_JSON_DEPTH} nested levels" if level else None
