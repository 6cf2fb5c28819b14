"""A loaded cascade: prompts in, pictures out.

    from imagen_jax import Cascade

    cascade = Cascade.from_name("shapes")            # weights that ship with the package
    cascade = Cascade.from_directory("runs/mine")    # a run, also while it trains
    result = cascade(["a red circle"], num_images=4, seed=0)
    result.images["base"]                            # [4, H, W, 3] uint8
    result.pil()[0].show()                           # the last stage as PIL images
    result.save("out")                               # PNGs with metadata, and grids

    cascade("a blue square", seeds=[3, 7], guidance_weight=5, num_steps={"base": 20})
    cascade("a blue square", stages="base", sampler="ancestral", callback=print)
    cascade("a blue square", low_res_image="mine.png")  # super-resolution of a picture
    cascade("a blue square", aspect="3:2")            # if trained with data.aspect_buckets

Picture j of a prompt has seed `seed + j`. It depends on its prompt, its seed and the settings, but
not on the other prompts, the number of pictures or the batch size (to the rounding of sums).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.config import SQUARE, CascadeConfig, SampleConfig, StageConfig, parse_aspect
from imagen_jax.diffusion.grids import Grid
from imagen_jax.diffusion.samplers import Sampler
from imagen_jax.errors import UserError
from imagen_jax.progress import DrawingProgress, Progress, progress_bar
from imagen_jax.sampling.encoded_prompts import EncodedPrompts
from imagen_jax.sampling.loop import SampleSettings, make_settings, picture_keys, sample_stage
from imagen_jax.sampling.low_res_image import load_low_res_image
from imagen_jax.sampling.origin import Origin
from imagen_jax.sampling.request import Request, change_settings, picture_cost, picture_seeds
from imagen_jax.sampling.result import Result
from imagen_jax.sampling.stream import Shelf, StageBatches, draw_missing, missing_rows
from imagen_jax.stage import Stage, open_stage
from imagen_jax.text.encoder import TextEncoder, load_encoder
from imagen_jax.types import TextCond, normalize_image, to_uint8
from imagen_jax.weights import artefact as artefact_lib
from imagen_jax.weights.artefact import Artefact
from imagen_jax.weights.reading import load
from imagen_jax.weights.shipped import load_shipped, shipped_names

# About a megapixel at once fits every device, and small pictures fill it.
PIXELS_PER_BATCH = 2**20
LARGEST_BATCH = 64
# What is compiled before the first stage, in a `Progress`.
TEXT = "text encoder"


@dataclasses.dataclass(frozen=True, eq=False)
class Cascade:
    """A set of trained stages with their text encoder; see the module's docstring.

    Attributes:
      artefact: configuration, provenance and parameters (on the default device).
      encoder: the text encoder that all stages were trained with.
      stages: those that have weights, opened.
    """

    artefact: Artefact
    encoder: TextEncoder
    stages: dict[str, Stage]

    @property
    def config(self) -> CascadeConfig:
        """The settings that the weights were trained with."""
        return self.artefact.config

    @classmethod
    def from_directory(
        cls, path: str | os.PathLike[str], *, text_encoder: str | None = None
    ) -> Cascade:
        """Loads an exported cascade, a run (`workdir`) or one stage of a run.

        Args:
          text_encoder: path of the text encoder, if it was moved since training.

        Raises:
          UserError: no or damaged weights, another text encoder than in training.
        """
        return cls.from_artefact(load(path), text_encoder=text_encoder)

    @classmethod
    def from_name(cls, name: str, *, text_encoder: str | None = None) -> Cascade:
        """Loads weights that ship with the package. Raises UserError for an unknown name."""
        artefact = load_shipped(name)
        if artefact is None:
            names = ", ".join(shipped_names()) or "none"
            raise UserError(
                f"no weights ship under the name {name!r} (there are: {names}). Train them: "
                f"python train.py --config=configs/{name}.py --workdir=runs/{name}"
            )
        return cls.from_artefact(artefact, text_encoder=text_encoder)

    @classmethod
    def from_artefact(cls, artefact: Artefact, *, text_encoder: str | None = None) -> Cascade:
        """Builds the networks for weights that are already read."""
        text_config = artefact.config.text
        if text_encoder is not None:
            text_config = dataclasses.replace(text_config, encoder=text_encoder)
        encoder = load_encoder(text_config)
        _check_encoder(encoder, artefact)
        stages, weights = {}, {}
        for name in artefact.config.ordered_stages():
            if name not in artefact.stages:
                continue
            stages[name] = open_stage(artefact.config, name, encoder.dim)
            found = artefact.stages[name]
            artefact_lib.check_params(name, found.params, stages[name].abstract_params())
            params = jax.tree.map(jnp.asarray, found.params)
            weights[name] = dataclasses.replace(found, params=params)
        return cls(dataclasses.replace(artefact, stages=weights), encoder, stages)

    def settings(self, stage: str) -> SampleConfig:
        """The settings that the weights' configuration gives a stage. Raises UserError."""
        if stage not in self.stages:
            raise UserError(self._unknown(stage))
        return self.stages[stage].config.sample

    def __repr__(self) -> str:
        stages = ", ".join(
            f"{name} {stage.config.resolution} px" for name, stage in self.stages.items()
        )
        return f"Cascade({self.config.name!r}: {stages or 'no weights yet'})"

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        num_images: int | None = None,
        seed: int | Sequence[int] = 0,
        seeds: Sequence[int] | None = None,
        stages: str | Sequence[str] | None = None,
        low_res_image: Any = None,
        aspect: str = SQUARE,
        settings: Mapping[str, SampleConfig] | None = None,
        sampler: Sampler | str | Mapping[str, Sampler | str] | None = None,
        num_steps: int | Mapping[str, int] | None = None,
        grid: Grid | str | Mapping[str, Grid | str] | None = None,
        guidance_weight: float | Mapping[str, float] | None = None,
        batch_size: int | None = None,
        callback: Callable[[Progress], None] | None = None,
        progress: bool = False,
    ) -> Result:
        """Draws pictures.

        Args:
          prompts: any text, also empty. Prompts longer than the encoder reads are cut, with a
            warning.
          num_images: pictures per prompt; default: 4, or one for each of `seeds`.
          seed: of the first picture of each prompt; the others follow.
          seeds: the seed of each picture of a prompt, instead of `seed` and `num_images`. A list
            given as `seed` is the same.
          stages: consecutive stages to run, in order, as names or one string ("base,sr64");
            default: all that have weights, those after the base if there is a `low_res_image`.
          low_res_image: a file, a PIL image or `[H, W, 3]` uint8 for the first (super-resolution)
            stage; cut around its centre to `aspect` and resized to the stage's low resolution
            unless it has that size.
          aspect: width to height, one of those that the stages were trained in.
          settings: by stage; default: those of the configuration.
          sampler: replaces that of the settings: a sampler, or the name of its kind. This and the
            next three are for all stages, or by stage ({"base": 5, "sr64": 1}).
          num_steps: replaces that of the settings.
          grid: replaces that of the settings: a grid of noise levels, or the name of its kind.
          guidance_weight: replaces that of the settings. 1 is no guidance.
          batch_size: pictures at once; default: about a megapixel.
          callback: called with a `Progress` before and after each program is compiled and after
            each batch. What it raises ends the call.
          progress: show a bar.

        Raises:
          UserError: any of these out of range, stages that do not fit together, an unreadable
            picture, an aspect ratio that a stage was not trained in.
        """
        chain = self.chain(stages, low_res_image is not None)
        unknown = [name for name in settings or {} if name not in chain]
        if unknown:
            raise UserError(f"settings for {unknown[0]!r}, but the stages are {', '.join(chain)}")
        used = {name: (settings or {}).get(name, self.settings(name)) for name in chain}
        request = Request(
            prompts=(prompts,) if isinstance(prompts, str) else tuple(prompts),
            seeds=picture_seeds(seed, seeds, num_images),
            settings=change_settings(
                used,
                sampler=sampler,
                num_steps=num_steps,
                grid=grid,
                guidance_weight=guidance_weight,
            ),
            aspect=aspect,
            low_res=self.low_res_picture(low_res_image, chain, aspect),
            batch_size=batch_size,
        )
        shelf = _Memory()
        with contextlib.ExitStack() as stack:
            callbacks = [] if callback is None else [callback]
            if progress:
                callbacks.append(stack.enter_context(progress_bar()))
            self.draw(request, shelf, lambda event: [call(event) for call in callbacks])
        return Result(
            **vars(self.origin(request)),
            images={name: shelf.stacked(name, request.total) for name in chain},
        )

    def low_res_picture(
        self, picture: Any, stages: Sequence[str], aspect: str
    ) -> np.ndarray | None:
        """`picture` as the first of `stages` takes it, see `Request.low_res`; None for None.

        Raises:
          UserError: it cannot be read, or a stage was not trained in this aspect ratio.
        """
        if picture is None:
            return None
        factor = self.stages[stages[0]].factor
        height, width = (side // factor for side in self.shapes(stages, aspect)[stages[0]])
        return load_low_res_image(picture, height, width)

    def origin(self, request: Request) -> Origin:
        """What the pictures of a request are made from."""
        low_res = request.low_res
        return Origin(
            prompts=request.prompts,
            seeds=request.seeds,
            aspect=request.aspect,
            settings=dict(request.settings),
            weights={name: self.artefact.stages[name].sha256 for name in request.settings},
            low_res_sha256=None if low_res is None else hashlib.sha256(low_res).hexdigest(),
        )

    def draw(
        self, request: Request, shelf: Shelf, callback: Callable[[Progress], None] | None = None
    ) -> None:
        """Draws the pictures of a request that `shelf` lacks, with a few batches in memory.

        Args:
          request: its stages form a chain, see `chain`.
          shelf: gets each picture as soon as it is drawn.
          callback: as of a call.

        Raises:
          UserError: see `__call__`.
        """
        stages, total = list(request.settings), request.total
        shapes = self.shapes(stages, request.aspect)
        sizes = {
            name: min(request.batch_size or self.default_batch_size(name), total) for name in stages
        }
        following = DrawingProgress(
            callback or (lambda event: None),
            totals=dict.fromkeys(stages, total),
            done={name: total - len(missing_rows(shelf, name, total)) for name in stages},
            costs={name: picture_cost(request.settings[name], shapes[name]) for name in stages},
        )
        text = EncodedPrompts(self.encoder, request.prompts, keep=2 * sum(sizes.values()))
        compiled = set()

        def drawing(name: str) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
            settings = make_settings(request.settings[name])

            def draw(rows: np.ndarray, low_res: np.ndarray | None) -> np.ndarray:
                numbers = np.array([request.prompt_of(row) for row in rows])
                with contextlib.nullcontext() if compiled else following.compiling(TEXT):
                    condition = text(numbers)
                compiling = None if name in compiled else following.compiling(name)
                compiled.update([TEXT, name])
                return self.draw_batch(
                    name,
                    condition,
                    np.array([request.seed_of(row) for row in rows], np.uint32),
                    settings,
                    low_res,
                    shapes[name],
                    compiling,
                )

            return draw

        draw_missing(
            [StageBatches(name, sizes[name], drawing(name)) for name in stages],
            total,
            request.low_res,
            shelf,
            following.add,
        )

    def shapes(self, stages: Sequence[str], aspect: str) -> dict[str, tuple[int, int]]:
        """The shape (H, W) of each stage's pictures of an aspect ratio, such as "3:2".

        Raises:
          UserError: it is none, a stage was not trained in it, or the stages do not fit together.
        """
        config = self.config
        width, height = parse_aspect(aspect, "the aspect ratio")
        aspect, shapes = f"{width}:{height}", {}
        for name in stages:
            side = config.stages[name].resolution
            trained = self.artefact.stages[name].training.get("shapes", {SQUARE: (side, side)})
            if aspect not in trained:
                raise UserError(
                    f"stage {name!r} was not trained on pictures of {aspect} (width:height), only "
                    f"on {', '.join(trained)}; config.data.aspect_buckets says which"
                )
            shapes[name] = tuple(trained[aspect])
        for small, large in itertools.pairwise(stages):
            factor = self.stages[large].factor
            if tuple(side // factor for side in shapes[large]) != shapes[small]:
                raise UserError(
                    f"stages {small!r} and {large!r} were trained with other "
                    f"config.data.aspect_buckets or strides: at {aspect} the one draws "
                    f"{shapes[small][1]}x{shapes[small][0]} pixels, the other "
                    f"{shapes[large][1]}x{shapes[large][0]}"
                )
        return shapes

    def chain(self, stages: str | Sequence[str] | None, has_picture: bool) -> list[str]:
        """The stages that a call with these `stages` (or "base,sr64") runs, in order.

        Raises:
          UserError: unknown or untrained stages, stages that do not follow each other, or whose
            first needs or does not take a picture.
        """
        config = self.config
        order = list(config.ordered_stages())
        if isinstance(stages, str):
            stages = [name.strip() for name in stages.split(",")]
        if stages is None:
            stages = []
            for name in order:
                if has_picture and not config.stages[name].low_resolution:
                    continue
                if name not in self.stages and (stages or not has_picture):
                    break
                if name in self.stages:
                    stages.append(name)
            if not stages:
                needed = order[-1] if has_picture else order[0]
                raise UserError(self._unknown(needed))
        for name in stages:
            if name not in self.stages:
                raise UserError(self._unknown(name))
        if not stages:
            raise UserError(f"no stage is chosen; the stages are {', '.join(self.stages)}")
        first: StageConfig = config.stages[stages[0]]
        if not has_picture and first.low_resolution:
            raise UserError(
                f"stage {stages[0]!r} enlarges pictures of {first.low_resolution} px: start with "
                f"{order[0]!r}, or give it a picture (--low_res_image=FILE)"
            )
        if has_picture and not first.low_resolution:
            raise UserError(
                f"stage {stages[0]!r} draws from noise and takes no low-resolution image: start "
                "with a super-resolution stage"
            )
        place = order.index(stages[0])
        if list(stages) != order[place : place + len(stages)]:
            raise UserError(
                f"stages {', '.join(stages)} do not follow each other; the order is "
                f"{', '.join(order)}"
            )
        return list(stages)

    def _unknown(self, stage: str) -> str:
        config = self.config
        if stage not in config.stages:
            return f"there is no stage {stage!r}; the stages are {', '.join(config.stages)}"
        return (
            f"stage {stage!r} has no weights yet (there are: {', '.join(self.stages) or 'none'}). "
            f"Train it: python train.py --config=configs/{config.name}.py "
            f"--workdir=runs/{config.name} --stage={stage}"
        )

    def draw_batch(
        self,
        name: str,
        text: TextCond,
        seeds: np.ndarray,
        settings: SampleSettings,
        low_res: np.ndarray | None = None,
        shape: tuple[int, int] | None = None,
        compiling: contextlib.AbstractContextManager[None] | None = None,
    ) -> np.ndarray:
        """One picture of one stage for each row; compiled once per batch size, stage and shape.

        Args:
          name: a stage that has weights.
          text: batch size B, see `encode`.
          seeds: `[B]` uint32; what a picture draws at random follows from its seed alone.
          settings: see `make_settings`.
          low_res: `[B, h, w, 3]` uint8 at the stage's low resolution, for super-resolution.
          shape: (H, W); default: the square of the stage's resolution.
          compiling: entered while the program is compiled.

        Returns: `[B, H, W, 3]` uint8.

        Raises:
          UserError: the pictures are not finite.
        """
        stage = self.stages[name]
        x = sample_stage(
            stage,
            self.artefact.stages[name].params,
            text,
            picture_keys(seeds, stage.index),
            settings,
            None if low_res is None else normalize_image(jnp.asarray(low_res)),
            shape,
            compiling,
        )
        if not bool(jnp.isfinite(x).all()):
            raise UserError(
                f"stage {name!r} drew values that are not finite: its training has "
                "diverged, or the guidance weight is far too large"
            )
        return np.asarray(to_uint8(x))

    def default_batch_size(self, name: str) -> int:
        """How many pictures of a stage are drawn at once unless the caller says otherwise."""
        resolution = self.stages[name].config.resolution
        return max(1, min(LARGEST_BATCH, PIXELS_PER_BATCH // resolution**2))

    def encode(self, prompts: Sequence[str]) -> TextCond:
        """`[P, L, D]` text on the host. Warns of prompts that are cut."""
        return EncodedPrompts(self.encoder, prompts)(np.arange(len(prompts)))


def _check_encoder(encoder: TextEncoder, artefact: Artefact) -> None:
    for what, have, want in (
        ("text encoder", encoder.identity, artefact.encoder_identity),
        ("tokenizer", encoder.tokenizer_hash, artefact.tokenizer_hash),
    ):
        if have != want:
            raise UserError(
                f"these weights were trained with another {what} ({want[:12]}...) than "
                f"{artefact.config.text.encoder!r} is now ({have[:12]}...): give the original one "
                "with --text_encoder=DIR"
            )


class _Memory:
    """A `Shelf` in memory."""

    def __init__(self) -> None:
        self._pictures: dict[tuple[str, int], np.ndarray] = {}

    def has(self, stage: str, row: int) -> bool:
        return (stage, row) in self._pictures

    def read(self, stage: str, row: int) -> np.ndarray:
        return self._pictures[stage, row]

    def write(self, stage: str, row: int, picture: np.ndarray) -> None:
        self._pictures[stage, row] = picture

    def stacked(self, stage: str, total: int) -> np.ndarray:
        """All pictures of a stage, `[total, H, W, 3]` uint8."""
        return np.stack([self._pictures[stage, row] for row in range(total)])
