"""What a cascade returns: pictures and how they were made."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
from etils import epath

from imagen_jax.sampling.folder import PictureFolder
from imagen_jax.sampling.origin import Origin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result(Origin):
    """Pictures and what they were drawn from.

    Attributes:
      images: by stage, `[P * N, H, W, 3]` uint8: all N pictures of the first prompt first.
    """

    images: dict[str, np.ndarray]

    def pil(self, stage: str | None = None) -> list[Any]:
        """The pictures of `stage` (default: the last) as `PIL.Image.Image`."""
        from PIL import Image

        last = list(self.images)[-1]
        return [Image.fromarray(picture) for picture in self.images[stage or last]]

    def save(self, directory: str | os.PathLike[str]) -> list[epath.Path]:
        """Writes the pictures, and for each stage a grid of them; see `PictureFolder`.

        Returns:
          The paths of the grids.

        Raises:
          UserError: the directory holds other pictures, or cannot be written.
        """
        folder = PictureFolder(directory, self)
        for stage, pictures in self.images.items():
            for row, picture in enumerate(pictures):
                if not folder.has(stage, row):
                    folder.write(stage, row, picture)
        return folder.write_grids()
