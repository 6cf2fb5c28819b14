"""Files of strangers: regular files only, and JSON that is an object of a sane size."""

import json
import os
import re

import pytest

from imagen_jax import foreign_files
from imagen_jax.errors import UserError, brief
from imagen_jax.foreign_files import check_file_name, read_bytes, read_json_object


def make_pipe(path):
    os.mkfifo(path)


def link_to_device(path):
    path.symlink_to("/dev/zero")


def link_to_itself(path):
    path.symlink_to(path.name)


def link_to_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is missing: copy the whole directory"),
        (make_pipe, "is a pipe"),
        (link_to_pipe, "is a pipe"),
        (link_to_device, "is a device"),
        (link_to_itself, "symbolic links"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.symlink_to("nothing"), "is missing"),
    ],
)
def test_nothing_but_regular_files_is_read(tmp_path, make, message):
    make(tmp_path / "file")
    for read in (read_bytes, read_json_object):
        with pytest.raises(UserError, match=message):
            read(tmp_path / "file")


def test_links_to_files_are_followed(tmp_path):
    (tmp_path / "file").write_text("{}")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link") == b"{}"
    assert read_json_object(tmp_path / "link") == {}


def test_a_file_larger_than_its_kind_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_text('{"a": 1}')
    os.truncate(tmp_path / "file", 2**40)  # a gap, which takes no room
    with pytest.raises(UserError, match="1,099,511,627,776 bytes"):
        read_json_object(tmp_path / "file")
    monkeypatch.setattr(foreign_files.epath.Path("x").__class__, "read_bytes", raise_memory_error)
    with pytest.raises(UserError, match=r"1,099\.5 GB, more than the memory"):
        read_bytes(tmp_path / "file")


def raise_memory_error(self):
    raise MemoryError


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\x00" * 50, "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON .*utf-8"),
        (b'{"a": "\xff"}', "not valid JSON .*utf-8"),
        (b'{"a": 1', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON .*recursion"),
        (b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", "32 nested levels"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON .*digits"),
        (b"[1, 2]", r"holds \[1, 2\] instead of a JSON object"),
        (b"null", "holds None instead"),
        (b'"text"', "holds 'text' instead"),
        (b'{"a": "\\ud800"}', "half of a character"),
        (b'{"\\ud800": 1}', r"the name '\\ud800'"),
        (b'{"\\u001b[2J": 1}', r"the name '\\x1b\[2J'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_json_that_is_no_configuration(tmp_path, data, message):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        read_json_object(tmp_path / "file")
    assert str(tmp_path / "file") in str(error.value) and len(str(error.value)) < 500


def test_json_as_it_comes(tmp_path):
    content = {"a": [1, 2.5, None, True, "\N{FOX FACE} 中"], "b": {"c": float("inf")}}
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "file").write_text(json.dumps(content, ensure_ascii=False), encoding)
        assert read_json_object(tmp_path / "file") == content


STRANGE_NAMES = [
    *("../x", "/etc/passwd", "a/b", "", ".", "..", ".hidden", "a\0b", "a b", "é", "x\n", "x" * 300),
    *(None, 5, ["x"], {"x": 1}),
]


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_names_that_are_no_file_names(name):
    with pytest.raises(UserError, match=re.escape(f"entry is {brief(name)}")):
        check_file_name(name, "entry")


def test_file_names():
    for name in ("base.safetensors", "base-0a1b.safetensors", "model-00001-of-00002.safetensors"):
        assert check_file_name(name, "entry") == name


def test_values_in_messages_are_short():
    assert brief("ab") == "'ab'" and brief(3) == "3"
    for value in ("x" * 10**6, 10**4000, list(range(10**5)), {str(i): i for i in range(1000)}):
        assert len(brief(value)) <= 203
