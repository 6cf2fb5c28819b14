"""The weights that ship in the package, as `weights/<name>/`."""

from __future__ import annotations

import importlib.resources
import re

from etils import epath

from imagen_jax.weights.artefact import CONFIG_FILE, Artefact
from imagen_jax.weights.reading import load_directory


def load_shipped(name: str) -> Artefact | None:
    """The weights that ship in the package as `weights/<name>/`, or None if there are none."""
    if not re.fullmatch(r"[\w-]+", name):
        return None
    directory = _shipped_root() / name
    return load_directory(directory) if (directory / CONFIG_FILE).is_file() else None


def shipped_names() -> list[str]:
    """Names that `load_shipped` knows."""
    return sorted(p.parent.name for p in _shipped_root().glob(f"*/{CONFIG_FILE}"))


def _shipped_root() -> epath.Path:
    return epath.Path(str(importlib.resources.files("imagen_jax"))) / "weights"
