"""What a cascade returns: pictures and how they were made."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
from etils import epath

from imagen_jax import pictures as images
from imagen_jax.config import SampleConfig, to_json_dict
from imagen_jax.version import __version__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Pictures and how they were made.

    Attributes:
      images: by stage, `[P * N, H, W, 3]` uint8: all N pictures of the first prompt first.
      prompts: the P prompts.
      seeds: the N seeds, the same for every prompt.
      aspect: width to height of the pictures, such as "3:2".
      settings: by stage.
      weights: by stage, sha256 of the weights file.
    """

    images: dict[str, np.ndarray]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    aspect: str
    settings: dict[str, SampleConfig]
    weights: dict[str, str]

    def pil(self, stage: str | None = None) -> list[Any]:
        """The pictures of `stage` (default: the last) as `PIL.Image.Image`."""
        from PIL import Image

        last = list(self.images)[-1]
        return [Image.fromarray(picture) for picture in self.images[stage or last]]

    def metadata(self, stage: str) -> dict[str, Any]:
        """The metadata that all pictures of a stage share, as plain JSON values."""
        # A picture also depends on the settings and weights of the earlier stages.
        stages = list(self.images)[: list(self.images).index(stage) + 1]
        return {
            "software": f"imagen_jax {__version__}",
            "stage": stage,
            "aspect": self.aspect,
            "settings": {name: to_json_dict(self.settings[name]) for name in stages},
            "weights": {name: self.weights[name] for name in stages},
        }

    def save(self, directory: str | os.PathLike[str]) -> list[epath.Path]:
        """Writes `<stage>/<prompt>_seed<seed>.png` and a labelled `grid_<stage>.png` per stage.

        Every PNG contains its prompt, seed, settings and the hashes of the weights; a `.json`
        beside it has them too. Returns the paths of the grids.
        """
        directory = epath.Path(directory)
        grids = []
        for stage, pictures in self.images.items():
            (directory / stage).mkdir(parents=True, exist_ok=True)
            common = self.metadata(stage)
            rows = pictures.reshape(len(self.prompts), len(self.seeds), *pictures.shape[1:])
            for number, (prompt, row) in enumerate(zip(self.prompts, rows, strict=True)):
                for seed, picture in zip(self.seeds, row, strict=True):
                    path = directory / stage / f"{number:03d}_seed{seed}.png"
                    images.save_png(path, picture, {"prompt": prompt, "seed": seed, **common})
            grids.append(directory / f"grid_{stage}.png")
            labels = [prompt.strip() or "(empty prompt)" for prompt in self.prompts]
            grid = images.labelled_grid(rows, labels)
            about = {"prompts": list(self.prompts), "seeds": list(self.seeds), **common}
            images.save_png(grids[-1], grid, about)
        return grids
