"""What pictures were drawn from: enough to draw them again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from typing import Any

from imagen_jax.config import SampleConfig, to_json_dict
from imagen_jax.pictures import printable
from imagen_jax.version import __version__

# Characters of a prompt, and bytes, in a file name.
SLUG_CHARACTERS = 40
SLUG_BYTES = 120


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """What the pictures of a request were drawn from.

    Attributes:
      prompts: the P prompts.
      seeds: the N seeds, the same for every prompt.
      aspect: width to height of the pictures, such as "3:2".
      settings: by stage, in the order of the stages.
      weights: by stage, sha256 of the weights file.
      low_res_sha256: of the pixels of the picture that was enlarged; None without one.
      negative_prompts: as of `Request`.
      prompt_weights: whether prompts were read with weights of their parts.
      guide_weights: by stage, sha256 of the weights file of its guide.
      editing: what else decided the pictures, see `Request.editing`; empty for most.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    aspect: str
    settings: dict[str, SampleConfig]
    weights: dict[str, str]
    low_res_sha256: str | None = None
    negative_prompts: tuple[str | None, ...] = ()
    prompt_weights: bool = False
    guide_weights: dict[str, str] = dataclasses.field(default_factory=dict)
    editing: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> int:
        """Pictures of each stage."""
        return len(self.prompts) * len(self.seeds)

    def metadata(self, stage: str) -> dict[str, Any]:
        """The metadata that all pictures of a stage share, as plain JSON values."""
        # A picture also depends on the settings and weights of the earlier stages.
        stages = list(self.settings)[: list(self.settings).index(stage) + 1]
        shared = {
            "software": f"imagen_jax {__version__}",
            "stage": stage,
            "aspect": self.aspect,
            "settings": {name: to_json_dict(self.settings[name]) for name in stages},
            "weights": {name: self.weights[name] for name in stages},
        }
        if self.low_res_sha256 is not None:
            shared["low_res_sha256"] = self.low_res_sha256
        if self.prompt_weights:
            shared["prompt_weights"] = True
        guides = {name: self.guide_weights[name] for name in stages if name in self.guide_weights}
        if guides:
            shared["guide_weights"] = guides
        return {**shared, **self._editing()}

    def picture_metadata(self, stage: str, row: int) -> dict[str, Any]:
        """The metadata of one picture."""
        number, place = divmod(row, len(self.seeds))
        own = {"prompt": self.prompts[number], "seed": self.seeds[place]}
        negative = self.negative_prompts[number] if self.negative_prompts else None
        if negative is not None:
            own["negative_prompt"] = negative
        return {**own, **self.metadata(stage)}

    def file_name(self, row: int) -> str:
        """The name of a picture's file: number of the prompt, seed, and the prompt in short."""
        number, place = divmod(row, len(self.seeds))
        digits = max(3, len(str(len(self.prompts) - 1)))
        slug = slug_of(self.prompts[number])
        return f"{number:0{digits}d}_seed{self.seeds[place]}{'_' if slug else ''}{slug}.png"

    def directory_name(self) -> str:
        """A name for a directory of the pictures, another one for another origin."""
        text = json.dumps(self.to_json_dict(), sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(text.encode("utf-8")).hexdigest()[:8]
        return "-".join(filter(None, [slug_of(self.prompts[0]), digest]))

    def to_json_dict(self) -> dict[str, Any]:
        """Everything that decides the pictures, as plain JSON values."""
        # Absent where not given, as in directories of before these settings.
        optional = {}
        if any(prompt is not None for prompt in self.negative_prompts):
            optional["negative_prompts"] = {
                f"{i}": printable(prompt, True)
                for i, prompt in enumerate(self.negative_prompts)
                if prompt is not None
            }
        if self.prompt_weights:
            optional["prompt_weights"] = True
        if self.guide_weights:
            optional["guide_weights"] = dict(self.guide_weights)
        return {
            "prompts": {f"{i}": printable(prompt, True) for i, prompt in enumerate(self.prompts)},
            "seeds": list(self.seeds),
            "aspect": self.aspect,
            "settings": {name: to_json_dict(item) for name, item in self.settings.items()},
            "weights": dict(self.weights),
            "low_res_sha256": self.low_res_sha256,
            **optional,
            **self._editing(),
        }

    def _editing(self) -> dict[str, Any]:
        # Left out where it is empty, as in the files of earlier versions.
        return {"editing": self.editing} if self.editing else {}


def slug_of(prompt: str) -> str:
    """The letters and digits of a prompt's start for a file name, with "-" for all else."""
    text = unicodedata.normalize("NFC", printable(prompt)).lower()
    slug = re.sub(r"[\W_]+", "-", text).strip("-")[:SLUG_CHARACTERS]
    # Cut between characters, of which some have several bytes.
    slug = slug.encode("utf-8")[:SLUG_BYTES].decode("utf-8", "ignore")
    return slug.strip("-")
