"""Files of a run in an object store, which cannot be appended to."""

from __future__ import annotations

import tempfile
import time

from etils import epath

# Seconds between two uploads: each sends whole files.
UPLOAD_SECONDS = 60.0


class Mirror:
    """A local directory whose files are copied to a directory of an object store.

    Args:
      directory: of the object store.

    Attributes:
      local: the directory to write to.
    """

    def __init__(self, directory: epath.Path):
        self.local = epath.Path(tempfile.mkdtemp(prefix="imagen_jax_"))
        self._directory = directory
        self._uploaded = time.monotonic()
        self._lengths: dict[epath.Path, int] = {}

    def upload_if_due(self) -> None:
        """Uploads if the last upload was `UPLOAD_SECONDS` ago."""
        if time.monotonic() > self._uploaded + UPLOAD_SECONDS:
            self.upload()

    def upload(self) -> None:
        """Copies the files whose length has changed."""
        for root, _, names in self.local.walk():
            place = self._directory / root.relative_to(self.local)
            for name in names:
                length = (root / name).stat().length
                if self._lengths.get(root / name) != length:
                    place.mkdir(parents=True, exist_ok=True)
                    (root / name).copy(place / name, overwrite=True)
                    self._lengths[root / name] = length
        self._uploaded = time.monotonic()

    def close(self) -> None:
        """Copies the rest and removes the local directory."""
        self.upload()
        self.local.rmtree()
