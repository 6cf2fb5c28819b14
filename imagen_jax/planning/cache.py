"""Cache of compiled programs on disk.

An entry holds the compiler's figures and the text of the program, not what is read from them, so
the traffic and estimates of a program can be computed anew without compiling. An entry has two
keys: a fast one of the settings and the package's sources, and one of the lowered program. An edit
of the sources that does not change the program needs a new trace but no compilation.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

import jax
from etils import epath

from imagen_jax.config import CascadeConfig, to_json_dict
from imagen_jax.files import write_atomically
from imagen_jax.planning.programs import Facts
from imagen_jax.planning.topology import Topology, compiler_version

PACKAGE = Path(__file__).parent.parent
# The sources that decide a program.
SOURCES = (
    "checks.py",
    "config",
    "denoiser.py",
    "diffusion",
    "models",
    "optimizers.py",
    "parallel",
    "planning/programs.py",
    "sampling",
    "stage.py",
    "training",
    "types.py",
)
VERSIONS = ("jax", "jaxlib", "flax", "optax")


def cache_directory() -> Path:
    """`imagen_jax/plans` in the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "imagen_jax" / "plans"


def plan_key(
    program: str,
    config: CascadeConfig,
    name: str,
    text_dim: int,
    topology: Topology,
    effort: str,
) -> str:
    """A hash of the settings, versions and sources that decide a program."""
    stage = to_json_dict(config.stages[name])
    if program == "train":
        stage.pop("sample")
    else:
        stage.pop("train")
    parts = {
        "program": program,
        "stage": stage,
        "mesh": to_json_dict(config.mesh),
        "text": [text_dim, config.text.max_length],
        "topology": dataclasses.astuple(dataclasses.replace(topology, chip=None)),
        "device": topology.chip.kind if topology.chip else "",
        "effort": effort,
        "versions": [importlib.metadata.version(package) for package in VERSIONS],
        "compiler": compiler_version(topology),
        "sources": sources_hash(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def program_key(lowered: jax.stages.Lowered, topology: Topology, effort: str) -> str:
    """A hash of a lowered program and of the compiler."""
    digest = hashlib.sha256(lowered.as_text().encode())
    devices = dataclasses.astuple(dataclasses.replace(topology, chip=None))
    compiler = [importlib.metadata.version("jaxlib"), compiler_version(topology)]
    digest.update(json.dumps([devices, effort, compiler]).encode())
    return digest.hexdigest()[:24]


def sources_hash() -> str:
    """A hash of the files of the package that decide a program."""
    digest = hashlib.sha256()
    for source in SOURCES:
        path = PACKAGE / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(PACKAGE).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def load(key: str) -> tuple[Facts, str] | None:
    """The entry that `store` wrote; None if there is none or it is damaged."""
    directory = cache_directory()
    try:
        facts = json.loads((directory / f"{key}.json").read_text())
        text = gzip.decompress((directory / f"{key}.hlo.gz").read_bytes()).decode()
        return Facts(**facts), text
    except (OSError, EOFError, ValueError, TypeError):
        return None


def store(key: str, facts: Facts, text: str) -> None:
    """Writes one entry."""
    directory = epath.Path(cache_directory())
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / f"{key}.hlo.gz", gzip.compress(text.encode(), 6, mtime=0))
    write_atomically(
        directory / f"{key}.json", json.dumps(dataclasses.asdict(facts), indent=1).encode()
    )
