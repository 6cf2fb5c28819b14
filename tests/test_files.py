"""Files are whole or not there; a full disk is one message."""

import errno
import os

import pytest
from etils import epath

from imagen_jax.errors import UserError
from imagen_jax.files import explain_full_disk, explain_write_errors, write_atomically


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = epath.Path(tmp_path) / "file"
    for data in (b"old", b"new and longer"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    resource = pytest.importorskip("resource")
    path = epath.Path(tmp_path) / "file"
    write_atomically(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            write_atomically(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def wrapped() -> Exception:
    """As TensorStore and Orbax report it: in words, and behind another error."""
    try:
        try:
            raise ValueError(
                "RESOURCE_EXHAUSTED: Error writing: [OS error: No space left on device]"
            )
        except ValueError as error:
            raise RuntimeError("the save failed") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), wrapped()])
def test_a_full_disk_is_explained(tmp_path, error):
    with (
        pytest.raises(UserError, match=r"no space is left to write to .*make space"),
        explain_full_disk(epath.Path(tmp_path)),
    ):
        raise error


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(PermissionError), explain_full_disk(epath.Path(tmp_path)):
        raise PermissionError(errno.EACCES, "no")


def chained(error: Exception) -> Exception:
    """`error` as the cause of another one."""
    outer = RuntimeError("the save failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "code", [errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ESTALE]
)
@pytest.mark.parametrize("wrap", [lambda error: error, chained])
def test_an_error_of_a_file_in_the_directory_is_explained(tmp_path, code, wrap):
    path = str(tmp_path / "checkpoints" / "5")
    with (
        pytest.raises(UserError, match=f"{path}: {os.strerror(code)}.*--workdir"),
        explain_write_errors(epath.Path(tmp_path)),
    ):
        raise wrap(OSError(code, os.strerror(code), path))


def test_an_error_that_names_a_file_that_is_gone_is_explained(tmp_path):
    text = f"No ArrayMetadata found in the checkpoint directory: {tmp_path}/40.tmp/state. But"
    with (
        pytest.raises(UserError, match=f"{tmp_path}/40.tmp/state. is gone"),
        explain_write_errors(epath.Path(tmp_path)),
    ):
        raise chained(ValueError(text))


def test_an_error_that_names_the_directory_in_its_text_is_explained(tmp_path):
    text = f"PERMISSION_DENIED: Error opening {tmp_path!s}/5/d: [OS error: Permission denied]"
    with (
        pytest.raises(UserError, match="Permission denied"),
        explain_write_errors(epath.Path(tmp_path)),
    ):
        raise ValueError(text)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/x"),
        ValueError("a defect"),
        OSError("no number"),
        OSError(errno.ENOENT, "No such file", ""),
    ],
)
def test_defects_and_errors_elsewhere_are_left_alone(tmp_path, error):
    with pytest.raises(type(error)) as found, explain_write_errors(epath.Path(tmp_path / "run")):
        raise error
    assert found.value is error


def test_a_user_error_stays_as_it_is(tmp_path):
    error = UserError("one")
    error.__cause__ = OSError(errno.EACCES, "no", str(tmp_path))
    with pytest.raises(UserError, match=r"^one$"), explain_write_errors(epath.Path(tmp_path)):
        raise error
