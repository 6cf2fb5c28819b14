"""scripts/fetch_icons.sh, with a stand-in for npm that has one package under every name."""

import hashlib
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from icon_files import CIRCLE, write_package

from imagen_jax.data.builtin.icons.find import load_sets

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "fetch_icons.sh"
NAMES = [
    "emojione",
    "fluent-emoji",
    "fluent-emoji-3d",
    "fluent-emoji-flat",
    "fxemoji",
    "noto",
    "streamline-emojis",
    "twemoji",
]
# npm pack --silent --pack-destination DIR NAME
NPM = '#!/bin/bash\n[[ -f "$ARCHIVE" ]] || exit 1\necho "$5" >> "$LOG"\ncp "$ARCHIVE" "$4/a.tgz"\n'


@pytest.fixture
def archive(tmp_path):
    package = write_package(tmp_path / "source" / "package", "some", {"a": CIRCLE})
    with tarfile.open(tmp_path / "archive.tgz", "w:gz") as tar:
        tar.add(package, "package")
    return tmp_path / "archive.tgz"


@pytest.fixture
def run(tmp_path):
    def run(script, archive, *arguments):
        programs = tmp_path / "bin"
        programs.mkdir(exist_ok=True)
        (programs / "npm").write_text(NPM)
        (programs / "npm").chmod(0o755)
        environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "ARCHIVE": str(archive),
            "LOG": str(tmp_path / "log"),
        }
        command = ["bash", str(script), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def below(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_set_lies_in_its_folder_and_is_fetched_once(tmp_path, run, archive):
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    text, number = re.subn(r"\b[0-9a-f]{64}\b", checksum, SCRIPT.read_text())
    script = tmp_path / "fetch.sh"
    script.write_text(text)
    icons = tmp_path / "my icons"
    done = run(script, archive, icons)
    assert (done.returncode, done.stderr) == (0, "")
    assert number == 8 and below(icons) == NAMES
    assert load_sets(str(icons / "noto"))[0].name == "some"
    fetched = (tmp_path / "log").read_text().splitlines()
    assert "@iconify-json/noto@1.2.9" in fetched and "@lobehub/fluent-emoji-3d@1.1.0" in fetched
    assert run(script, archive, icons).returncode == 0
    assert (tmp_path / "log").read_text().splitlines() == fetched


def test_a_changed_package_is_refused(tmp_path, run, archive):
    done = run(SCRIPT, archive, tmp_path / "icons")
    assert done.returncode == 2
    assert "@iconify-json/noto@1.2.9 is not what it was: SHA-256" in done.stderr
    assert below(tmp_path / "icons") == []


def test_wrong_use_is_one_message(tmp_path, run):
    done = run(SCRIPT, "none")
    assert (done.returncode, done.stderr) == (
        2,
        "error: give one directory: bash scripts/fetch_icons.sh DIR\n",
    )
    done = run(SCRIPT, tmp_path / "none", tmp_path / "icons")
    assert done.returncode == 2
    assert done.stderr == "error: npm could not download @iconify-json/noto@1.2.9\n"
    assert below(tmp_path / "icons") == []
