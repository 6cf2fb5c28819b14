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
    cascade("a blue square", negative_prompt="a red circle")
    cascade("a (blue:1.3) square", prompt_weights=True)
    Cascade.from_directory("runs/mine", guide="runs/smaller")  # autoguidance
    cascade("a blue square", size=(96, 64))           # any size that the networks can draw
    cascade.edit("mine.png", "a blue square", strength=0.6)
    cascade.inpaint("mine.png", "mask.png", "a blue square", resample=4)
    cascade.upscale("mine.png")                       # of any size, in overlapping tiles

Picture j of a prompt has seed `seed + j`. It depends on its prompt, its seed and the settings, but
not on the other prompts, the number of pictures or the batch size (to the rounding of sums).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.config import SQUARE, CascadeConfig, SampleConfig, StageConfig, parse_aspect
from imagen_jax.denoiser import NO_REFERENCES, References
from imagen_jax.diffusion.grids import Grid
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.samplers import Sampler
from imagen_jax.errors import UserError
from imagen_jax.progress import DrawingProgress, Progress, progress_bar
from imagen_jax.sampling.edit import Edit, load_mask, outpaint, parse_margins
from imagen_jax.sampling.encoded_prompts import EncodedPrompts
from imagen_jax.sampling.guides import Guides, NegativePrompts, check_guide, open_guides
from imagen_jax.sampling.loop import SampleSettings, make_settings, picture_keys, sample_stage
from imagen_jax.sampling.low_res_image import load_low_res_image, load_picture
from imagen_jax.sampling.origin import Origin
from imagen_jax.sampling.repaint import StageEdit
from imagen_jax.sampling.request import (
    Request,
    by_stage,
    change_settings,
    negative_prompts,
    picture_cost,
    picture_seeds,
)
from imagen_jax.sampling.result import Result
from imagen_jax.sampling.sizes import nearest_inside, parse_size, size_unit, sized_shapes
from imagen_jax.sampling.stream import Shelf, StageBatches, draw_missing, missing_rows
from imagen_jax.sampling.tiles import Tiles, stage_tiles
from imagen_jax.stage import Stage, open_stage
from imagen_jax.text.encoder import TextEncoder, load_encoder
from imagen_jax.types import TextCond, normalize_image, to_uint8
from imagen_jax.weights import artefact as artefact_lib
from imagen_jax.weights.artefact import Artefact
from imagen_jax.weights.reading import load
from imagen_jax.weights.shipped import load_shipped, shipped_names

logger = logging.getLogger("imagen_jax")

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
      guides: by stage, the weaker networks of autoguidance.
    """

    artefact: Artefact
    encoder: TextEncoder
    stages: dict[str, Stage]
    guides: Guides = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> CascadeConfig:
        """The settings that the weights were trained with."""
        return self.artefact.config

    @classmethod
    def from_directory(
        cls,
        path: str | os.PathLike[str],
        *,
        text_encoder: str | None = None,
        guide: str | os.PathLike[str] | None = None,
    ) -> Cascade:
        """Loads an exported cascade, a run (`workdir`) or one stage of a run.

        Args:
          text_encoder: path of the text encoder, if it was moved since training.
          guide: directory of weaker weights (smaller or less trained) for autoguidance, for all
            stages or some of them. Only the network and its training may differ.

        Raises:
          UserError: no or damaged weights, another text encoder than in training, a guide that
            does not fit.
        """
        weaker = None if guide is None else load(guide)
        return cls.from_artefact(load(path), text_encoder=text_encoder, guide=weaker)

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
    def from_artefact(
        cls,
        artefact: Artefact,
        *,
        text_encoder: str | None = None,
        guide: Artefact | None = None,
    ) -> Cascade:
        """Builds the networks for weights that are already read; see `from_directory`."""
        if guide is not None:
            check_guide(guide, artefact)
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
        guides = {} if guide is None else open_guides(guide, stages, encoder.dim)
        return cls(dataclasses.replace(artefact, stages=weights), encoder, stages, guides)

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
        guidance: Guidance | Mapping[str, Guidance] | None = None,
        grid: Grid | str | Mapping[str, Grid | str] | None = None,
        guidance_weight: float | Mapping[str, float] | None = None,
        negative_prompt: str | Sequence[str | None] | None = None,
        prompt_weights: bool = False,
        batch_size: int | None = None,
        callback: Callable[[Progress], None] | None = None,
        progress: bool = False,
        size: str | Sequence[int] | None = None,
        edit: Edit | None = None,
        tile: int | Mapping[str, int] | None = None,
        tile_overlap: int | Mapping[str, int] | None = None,
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
          guidance: replaces that of the settings: interval, schedule, rescaling and more.
          guidance_weight: replaces the weight of the guidance. 1 is no guidance.
          negative_prompt: what guidance moves away from instead of no text: one for all prompts, or
            a list with one for each, in which None is no text. Guides all stages whose weight is
            not 1.
          prompt_weights: read "(red:1.4)" in prompts as a weight, see `text.prompt_weights`.
          batch_size: pictures at once; default: about a megapixel.
          callback: called with a `Progress` before and after each program is compiled and after
            each batch. What it raises ends the call.
          progress: show a bar.
          size: (width, height) or "96x64" of the last stage's pictures, instead of `aspect`: any
            that the networks can draw. Stages that were not trained on it warn.
          edit: a picture that is changed; see `edit`, `inpaint` and `upscale`, which take all of
            these arguments.
          tile: draw in overlapping windows of this side, in pixels of the stage, where the
            picture is larger; for all stages or by stage. See `tiles.Tiles`.
          tile_overlap: of the windows, in pixels; default: a quarter of `tile`.

        Raises:
          UserError: any of these out of range, stages that do not fit together, an unreadable
            picture, an aspect ratio or a size that a stage cannot draw, a small tile.
        """
        if edit is not None and low_res_image is not None:
            raise UserError("low_res_image and a picture to edit are both given; give one of them")
        chain = self.chain(stages, low_res_image is not None or self.starts_enlarging(edit, stages))
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
                guidance=guidance,
                grid=grid,
                guidance_weight=guidance_weight,
            ),
            batch_size=batch_size,
            negative_prompts=negative_prompts(negative_prompt, _count(prompts)),
            prompt_weights=prompt_weights,
            guided_stages=self.guided(chain),
            **self.frame(chain, low_res_image, aspect, size, edit, tile, tile_overlap),
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

    def edit(
        self, image: Any, prompts: str | Sequence[str] = "", *, strength: Any = 0.6, **options: Any
    ) -> Result:
        """Image-to-image by partial noise (SDEdit, Meng et al. 2022).

        The base stage noises the picture and draws from there; the next ones enlarge what it drew.

        Args:
          image: a file, a PIL image or `[H, W, 3]` uint8. The middle of it is used if it has
            another aspect ratio than what is drawn.
          prompts: what the result shows.
          strength: share of the steps that is run, in (0, 1]; or by stage, see `Edit.strength`.
          options: any other argument of a call.

        Raises:
          UserError: see `__call__` and `Edit`.
        """
        edit = Edit(picture=load_picture(image, "picture"), strength=strength)
        return self(prompts, edit=edit, **options)

    def inpaint(
        self,
        image: Any,
        mask: Any = None,
        prompts: str | Sequence[str] = "",
        *,
        margins: str | Sequence[float] | None = None,
        strength: Any = 1.0,
        resample: Any = 4,
        jump: Any = 0,
        **options: Any,
    ) -> Result:
        """Draws parts of a picture anew and keeps all else exactly (RePaint, Lugmayr et al. 2022).

        "Exactly" is the picture as resized to each stage, once; at its own size, the same bits.

        Args:
          image: as of `edit`.
          mask: white where the picture is drawn anew, see `load_mask`; None with `margins`.
          prompts: what the result shows.
          margins: outpainting: what is added at the left, top, right and bottom, in pixels or
            shares, see `parse_margins`. Give a `size` or `aspect` unless that makes a square.
          strength, resample, jump: see `Edit`.
          options: any other argument of a call.

        Raises:
          UserError: see `__call__`, `Edit`, `load_mask` and `outpaint`.
        """
        picture = load_picture(image, "picture")
        marked = None if mask is None else load_mask(mask)
        if margins is not None:
            picture, marked = outpaint(picture, parse_margins(margins, "margins"), marked)
        if marked is None:
            raise UserError("no mask is given: paint white what is drawn anew, or give margins")
        edit = Edit(
            picture=picture,
            mask=marked,
            strength=strength,
            resample=resample,
            jump=jump,
            padded=margins is not None,
        )
        return self(prompts, edit=edit, **options)

    def upscale(
        self,
        image: Any,
        prompts: str | Sequence[str] = "",
        *,
        stages: str | Sequence[str] | None = None,
        num_images: int | None = 1,
        **options: Any,
    ) -> Result:
        """Super-resolution of a picture of any size by one or more stages.

        What is larger than the pictures of a stage is drawn in tiles of that size, unless `tile`
        says otherwise.

        Args:
          image: a file, a PIL image or `[H, W, 3]` uint8. A few pixels at its border are left out
            if the networks cannot divide its sides; then there is a warning.
          prompts: what it shows.
          stages: default: all super-resolution stages with weights.
          num_images: pictures per prompt, unless `seeds` are given.
          options: any other argument of a call.

        Raises:
          UserError: see `__call__`.
        """
        chain = self.chain(stages, True)
        picture, size = self.whole_picture(image, chain)
        if options.get("tile") is None:
            options["tile"] = self.default_tiles(chain)
        if options.get("seeds") is not None:
            num_images = None
        options["num_images"] = num_images
        return self(prompts, stages=chain, low_res_image=picture, size=size, **options)

    def whole_picture(self, image: Any, chain: Sequence[str]) -> tuple[np.ndarray, tuple[int, int]]:
        """A picture to be enlarged by `chain` at its own size, and the (width, height) drawn.

        Raises:
          UserError: it cannot be read, or is too small.
        """
        picture = load_picture(image, "picture")
        factor = math.prod(self.stages[name].factor for name in chain)
        unit = size_unit([self.stages[name] for name in chain]) // factor
        size = picture.shape[1], picture.shape[0]
        width, height = nearest_inside(size, unit)
        if (width, height) != size:
            logger.warning(
                "the picture is %dx%d pixels; the middle %dx%d of it is used, in multiples of %d",
                *size,
                width,
                height,
                unit,
            )
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        picture = picture[top : top + height, left : left + width]
        return picture, (width * factor, height * factor)

    def default_tiles(self, chain: Sequence[str]) -> dict[str, int]:
        """The sides of the tiles in which `upscale` draws: the stages' resolutions."""
        return {name: self.stages[name].config.resolution for name in chain}

    def starts_enlarging(self, edit: Edit | None, stages: str | Sequence[str] | None) -> bool:
        """Whether an edit begins at a super-resolution stage, which `stages` names."""
        if edit is None or not stages:
            return False
        first = (stages.split(",") if isinstance(stages, str) else list(stages))[0].strip()
        return first in self.stages and bool(self.stages[first].factor)

    def frame(
        self,
        chain: Sequence[str],
        low_res_image: Any,
        aspect: str,
        size: str | Sequence[int] | None,
        edit: Edit | None,
        tile: int | Mapping[str, int] | None,
        tile_overlap: int | Mapping[str, int] | None,
    ) -> dict[str, Any]:
        """The shapes and pictures of a request as its fields; arguments as of a call.

        Raises:
          UserError: see `__call__`.
        """
        if size is not None:
            size = parse_size(size, "size")
            if aspect != SQUARE:
                raise UserError(f"size={size} and aspect={aspect} are both given; give one of them")
        tiles = self._tiles(chain, tile, tile_overlap)
        shapes = self.shapes(chain, aspect, size, tiles)
        low_res = None
        if self.stages[chain[0]].factor:
            factor = self.stages[chain[0]].factor
            height, width = (side // factor for side in shapes[chain[0]])
        if edit is not None:
            edit.check_stages(chain)
            edit = edit.cut_to(shapes[chain[-1]])
            if self.stages[chain[0]].factor:
                low_res = edit.resized((height, width))
        elif low_res_image is not None:
            low_res = load_low_res_image(low_res_image, height, width)
        return {
            "aspect": aspect,
            "size": size,
            "low_res": low_res,
            "edit": edit,
            "tiles": tiles,
        }

    def _tiles(
        self,
        chain: Sequence[str],
        tile: int | Mapping[str, int] | None,
        overlap: int | Mapping[str, int] | None,
    ) -> dict[str, Tiles]:
        if tile is None and overlap is not None:
            raise UserError(f"tile_overlap={overlap} needs a tile: give its side")
        sides = by_stage("tile", tile, chain)
        overlaps = by_stage("tile_overlap", overlap, chain)
        return {
            name: stage_tiles(self.stages[name], sides[name], overlaps.get(name)) for name in sides
        }

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
            negative_prompts=request.negative_prompts,
            prompt_weights=request.prompt_weights,
            guide_weights={name: self.guides[name].sha256 for name in request.guided_stages},
            editing=request.editing(),
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
        tiles, edit = request.tiles, request.edit
        shapes = self.shapes(stages, request.aspect, request.size, tiles)
        windows = {
            name: tiles[name].window(shapes[name]) if name in tiles else shapes[name]
            for name in stages
        }
        sizes = {
            name: min(request.batch_size or self.default_batch_size(name, windows[name]), total)
            for name in stages
        }
        edits = (
            {}
            if edit is None
            else {
                name: edit.at(stages, name, shapes[name], request.settings[name].num_steps)
                for name in stages
            }
        )
        following = DrawingProgress(
            callback or (lambda event: None),
            totals=dict.fromkeys(stages, total),
            done={name: total - len(missing_rows(shelf, name, total)) for name in stages},
            costs={
                name: picture_cost(
                    request.settings[name],
                    shapes[name],
                    has_guide=name in request.guided_stages,
                )
                * (1 if edit is None else edit.repetitions(stages, name))
                for name in stages
            },
        )
        keep, weighted = 2 * sum(sizes.values()), request.prompt_weights
        text = EncodedPrompts(self.encoder, request.prompts, keep, weighted=weighted)
        negative = NegativePrompts(self.encoder, request.negative_prompts, keep, weighted=weighted)
        compiled = set()

        def drawing(name: str) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
            has_guide = name in request.guided_stages
            settings = make_settings(request.settings[name], has_guide=has_guide)
            guide = self.guides[name].network if has_guide else None

            def draw(rows: np.ndarray, low_res: np.ndarray | None) -> np.ndarray:
                numbers = np.array([request.prompt_of(row) for row in rows])
                with contextlib.nullcontext() if compiled else following.compiling(TEXT):
                    condition = text(numbers)
                    references = References(negative(numbers, condition), guide)
                compiling = None if name in compiled else following.compiling(name)
                compiled.update([TEXT, name])
                return self.draw_batch(
                    name,
                    condition,
                    np.array([request.seed_of(row) for row in rows], np.uint32),
                    settings,
                    low_res,
                    shapes[name],
                    references,
                    compiling,
                    edits.get(name),
                    tiles.get(name),
                )

            return draw

        draw_missing(
            [StageBatches(name, sizes[name], drawing(name)) for name in stages],
            total,
            request.low_res,
            shelf,
            following.add,
        )

    def guided(self, stages: Sequence[str]) -> tuple[str, ...]:
        """Those of the stages that have a guide, see `Request.guided_stages`.

        Raises:
          UserError: there are guides, but for none of these stages.
        """
        found = tuple(name for name in stages if name in self.guides)
        if self.guides and not found:
            raise UserError(
                f"the guide weights are for {', '.join(self.guides)}, but the stages are "
                f"{', '.join(stages)}: give the weights of one of these, or leave them out"
            )
        return found

    def shapes(
        self,
        stages: Sequence[str],
        aspect: str,
        size: tuple[int, int] | None = None,
        tiles: Mapping[str, Tiles] | None = None,
    ) -> dict[str, tuple[int, int]]:
        """The shape (H, W) of each stage's pictures of an aspect ratio, such as "3:2".

        Args:
          stages: that follow each other.
          aspect: width to height.
          size: (width, height) of the last stage's pictures, instead of `aspect`.
          tiles: by stage; see `sized_shapes`.

        Raises:
          UserError: it is none, a stage was not trained in it, or the stages do not fit together.
        """
        config = self.config
        if size is not None:
            opened = [self.stages[name] for name in stages]
            return sized_shapes(opened, size, tiles or {}, self._trained_shapes(stages))
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

    def _trained_shapes(self, stages: Sequence[str]) -> dict[str, set[tuple[int, int]]]:
        """The shapes (H, W) of the training pictures of each stage, crops included."""
        shapes = {}
        for name in stages:
            config = self.config.stages[name]
            trained = self.artefact.stages[name].training.get("shapes", {}).values()
            squares = {(side, side) for side in (config.resolution, config.train_size)}
            shapes[name] = squares | {tuple(shape) for shape in trained}
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
        references: References = NO_REFERENCES,
        compiling: contextlib.AbstractContextManager[None] | None = None,
        edit: StageEdit | None = None,
        tiles: Tiles | None = None,
    ) -> np.ndarray:
        """One picture of one stage for each row; compiled once per batch size, stage and shape.

        Args:
          name: a stage that has weights.
          text: batch size B, see `encode`.
          seeds: `[B]` uint32; what a picture draws at random follows from its seed alone.
          settings: see `make_settings`.
          low_res: `[B, h, w, 3]` uint8 at the stage's low resolution, for super-resolution.
          shape: (H, W); default: the square of the stage's resolution.
          references: see `sample_stage`.
          compiling: entered while the program is compiled.
          edit, tiles: see `sample_stage`.

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
            references,
            compiling,
            edit,
            tiles,
        )
        if not bool(jnp.isfinite(x).all()):
            raise UserError(
                f"stage {name!r} drew values that are not finite: its training has "
                "diverged, or the guidance weight is far too large"
            )
        return np.asarray(to_uint8(x))

    def default_batch_size(self, name: str, window: tuple[int, int] | None = None) -> int:
        """How many pictures of a stage are drawn at once unless the caller says otherwise.

        Args:
          name: of the stage.
          window: what its network sees at once; default: the square of its resolution.
        """
        resolution = self.stages[name].config.resolution
        pixels = math.prod(window or (resolution, resolution))
        return max(1, min(LARGEST_BATCH, PIXELS_PER_BATCH // pixels))

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


def _count(prompts: str | Sequence[str]) -> int:
    return 1 if isinstance(prompts, str) else len(prompts)


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
