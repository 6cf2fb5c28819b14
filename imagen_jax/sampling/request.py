"""What a call of a cascade asks for: prompts, seeds and the settings of its stages."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from imagen_jax.config import SQUARE, SampleConfig, choice_of_kind
from imagen_jax.diffusion.grids import GRIDS, ExplicitGrid, Grid
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.samplers import SAMPLERS, Sampler
from imagen_jax.errors import UserError
from imagen_jax.sampling.edit import Edit
from imagen_jax.sampling.tiles import Tiles
from imagen_jax.text.prompt_weights import parse_weights

DEFAULT_NUM_IMAGES = 4

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is drawn: one picture of each stage for each prompt and seed.

    A picture has a row: all pictures of the first prompt come first.

    Attributes:
      prompts: any text, also empty.
      seeds: of the pictures of each prompt; each in [0, 2^32).
      settings: of the stages that run, by name and in their order.
      aspect: width to height, such as "3:2".
      low_res: `[h, w, 3]` uint8, the picture that the first stage enlarges; None for a base stage.
      batch_size: pictures drawn at once; None: about a megapixel.
      negative_prompts: what guidance moves away from instead of the null text, one for each prompt;
        None among them for the null text. The empty prompt is encoded like any other. () for none.
      prompt_weights: whether "(red:1.4)" in a prompt is a weight, see `text.prompt_weights`.
      guided_stages: those that guide weights move away from; see `Cascade`.
      size: (width, height) of the last stage's pictures, instead of `aspect`; None: as trained.
      edit: the picture that is changed; None: pictures are drawn from noise.
      tiles: by stage, of those that draw in tiles.

    Raises:
      UserError: no prompt, a prompt that is no string, a seed that is no whole number, is out of
        range or is given twice, a batch size below 1, another number of negative prompts or some
        that do nothing since no stage is guided by text, weights of prompts that cannot be read.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, SampleConfig]
    aspect: str = SQUARE
    low_res: np.ndarray | None = None
    batch_size: int | None = None
    negative_prompts: tuple[str | None, ...] = ()
    prompt_weights: bool = False
    guided_stages: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    edit: Edit | None = None
    tiles: Mapping[str, Tiles] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("no prompt is given")
        for prompt in self.prompts:
            if not isinstance(prompt, str):
                raise UserError(f"a prompt is a string, not {prompt!r}")
        if not self.seeds:
            raise UserError("no seed is given: a prompt needs one for each of its pictures")
        seen = set()
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise UserError(f"seed={seed} must be in [0, 2^32)")
            if seed in seen:
                raise UserError(
                    f"seed={seed} is given twice; the same picture would be drawn twice"
                )
            seen.add(seed)
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size} must be at least 1")
        self._check_negative_prompts()
        for name in self.guided_stages:
            if self.settings[name].guidance.guide_weight == 1.0:
                raise UserError(
                    f"stage {name!r} has guide weights, which do nothing with guide_weight=1: give "
                    "another guide_weight, or leave the guide weights out"
                )
        if self.prompt_weights:
            for prompt in (*self.prompts, *self.negative_prompts):
                parse_weights(prompt or "")

    def _check_negative_prompts(self) -> None:
        for prompt in self.negative_prompts:
            if prompt is not None and not isinstance(prompt, str):
                raise UserError(f"a negative prompt is a string, not {prompt!r}")
        if self.negative_prompts and len(self.negative_prompts) != len(self.prompts):
            raise UserError(
                f"{len(self.negative_prompts)} negative prompts for {len(self.prompts)} prompts: "
                "give one for all of them, or one for each"
            )
        weights = {name: item.guidance.weight for name, item in self.settings.items()}
        if self.has_negative and all(weight == 1.0 for weight in weights.values()):
            given = next(prompt for prompt in self.negative_prompts if prompt is not None)
            raise UserError(
                f"the negative prompt {given!r} does nothing, since the guidance weight of "
                f"{', '.join(weights)} is 1: give another weight, or leave it out"
            )

    @property
    def has_negative(self) -> bool:
        """Whether any prompt has a negative one."""
        return any(prompt is not None for prompt in self.negative_prompts)

    @property
    def total(self) -> int:
        """Pictures of each stage."""
        return len(self.prompts) * len(self.seeds)

    def editing(self) -> dict[str, Any]:
        """What decides the pictures beside prompts, seeds and settings, as plain JSON values."""
        found = {} if self.edit is None else self.edit.identity(list(self.settings))
        if self.size is not None:
            found["size"] = f"{self.size[0]}x{self.size[1]}"
        if self.tiles:
            found["tiles"] = {name: [t.side, t.overlap] for name, t in self.tiles.items()}
        return found

    def prompt_of(self, row: int) -> int:
        """The number of the prompt of a row."""
        return row // len(self.seeds)

    def seed_of(self, row: int) -> int:
        """The seed of a row."""
        return self.seeds[row % len(self.seeds)]


def picture_seeds(
    seed: int | Sequence[int], seeds: Sequence[int] | None, num_images: int | None
) -> tuple[int, ...]:
    """The seeds of a prompt's pictures: `seeds`, or `num_images` from `seed` on.

    Args:
      seed: the first; or all of them, as `seeds`.
      seeds: all of them; None: they follow from the others.
      num_images: of each prompt; None: as many as there are seeds, else `DEFAULT_NUM_IMAGES`.

    Raises:
      UserError: a seed is no whole number, or the numbers contradict each other.
    """
    if seeds is None and _is_list(seed):
        seeds = seed
    elif seeds is not None and (_is_list(seed) or seed != 0):
        raise UserError(f"seed={seed} and seeds={seeds} are both given; give one of them")
    if seeds is not None:
        if not _is_list(seeds):
            raise UserError(
                f"seeds={seeds!r} must be a list of whole numbers; one is seed={seeds!r}"
            )
        numbers = tuple(_whole("seeds", item) for item in seeds)
        if num_images not in (None, len(numbers)):
            raise UserError(
                f"num_images={num_images}, but there are {len(numbers)} seeds: leave one out"
            )
        return numbers
    count = DEFAULT_NUM_IMAGES if num_images is None else _whole("num_images", num_images)
    if count < 1:
        raise UserError(f"num_images={count} must be at least 1")
    first = _whole("seed", seed)
    if not 0 <= first <= 2**32 - count:
        raise UserError(f"seed={first} must be in [0, 2^32 - num_images]")
    return tuple(range(first, first + count))


def negative_prompts(
    given: str | Sequence[str | None] | None, num_prompts: int
) -> tuple[str | None, ...]:
    """`Request.negative_prompts` from one for all prompts, one for each, or None for none."""
    if given is None:
        return ()
    return (given,) * num_prompts if isinstance(given, str) else tuple(given)


def change_settings(
    settings: Mapping[str, SampleConfig],
    *,
    sampler: Sampler | str | Mapping[str, Sampler | str] | None = None,
    num_steps: int | Mapping[str, int] | None = None,
    guidance: Guidance | Mapping[str, Guidance] | None = None,
    grid: Grid | str | Mapping[str, Grid | str] | None = None,
    guidance_weight: float | Mapping[str, float] | None = None,
) -> dict[str, SampleConfig]:
    """Settings with some of them replaced, in all stages or, given a mapping, by stage.

    Args:
      settings: by stage.
      sampler: a sampler, or the name of its kind. A kind other than the stage's has its defaults.
      num_steps: of the sampler; default with an explicit grid: the number of its log-SNRs.
      grid: a grid of noise levels, or the name of its kind, as for the sampler.
      guidance: with all of its settings.
      guidance_weight: its weight alone; 1 is no guidance.

    Raises:
      UserError: an unknown stage, sampler or grid, or a value out of range.
    """
    stages = list(settings)
    changed = dict(settings)
    # The sampler, its steps and their grid limit each other, so they change at once.
    steps: dict[str, dict[str, Any]] = {name: {} for name in stages}
    for name, value in by_stage("sampler", sampler, stages).items():
        steps[name]["sampler"] = _choice("sampler", SAMPLERS, value, changed[name].sampler)
    for name, value in by_stage("grid", grid, stages).items():
        steps[name]["grid"] = _choice("grid", GRIDS, value, changed[name].grid)
        if isinstance(steps[name]["grid"], ExplicitGrid):
            steps[name]["num_steps"] = len(steps[name]["grid"].logsnrs)
    for name, value in by_stage("num_steps", num_steps, stages).items():
        steps[name]["num_steps"] = _whole("num_steps", value)
    for name, fields in steps.items():
        changed[name] = dataclasses.replace(changed[name], **fields)
    for name, value in by_stage("guidance", guidance, stages).items():
        if not isinstance(value, Guidance):
            raise UserError(f"guidance={value!r} is no Guidance; a number is a guidance_weight")
        changed[name] = dataclasses.replace(changed[name], guidance=value)
    for name, value in by_stage("guidance_weight", guidance_weight, stages).items():
        try:
            weight = float(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"guidance_weight={value!r} is not a number") from error
        guidance = dataclasses.replace(changed[name].guidance, weight=weight)
        changed[name] = dataclasses.replace(changed[name], guidance=guidance)
    return changed


def picture_cost(settings: SampleConfig, shape: tuple[int, int], *, has_guide: bool = False) -> int:
    """About the work for a picture, in a unit common to all stages: passes times pixels."""
    passes = (1 if settings.guidance.weight == 1.0 else 2) + has_guide
    return settings.num_steps * settings.sampler.calls_per_step * passes * math.prod(shape)


def _choice(what: str, choices: tuple[type, ...], value: Any, current: Any) -> Any:
    """A choice, or by the name of its kind: the current one, or another with its defaults."""
    if isinstance(value, str):
        kind = choice_of_kind(choices, value, what)
        return current if isinstance(current, kind) else kind()
    if not isinstance(value, choices):
        kinds = ", ".join(choice.kind for choice in choices)
        raise UserError(f"{what}={value!r} is no {what}; give one, or a name ({kinds})")
    return value


def by_stage(what: str, value: T | Mapping[str, T] | None, stages: Sequence[str]) -> dict[str, T]:
    """A value by stage: of all stages, or those of a mapping; {} for None. Raises UserError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(stages, value)
    for name in value:
        if name not in stages:
            raise UserError(f"{what} for {name!r}, but the stages are {', '.join(stages)}")
    return dict(value)


def _is_list(value: Any) -> bool:
    return not isinstance(value, str) and np.ndim(value) > 0


def _whole(what: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise UserError(f"{what}: {value!r} is not a whole number") from error
