"""Draws pictures from prompts with a trained cascade.

    python sample.py --config=configs/shapes.py --prompts="a red circle" --out=out
    python sample.py --workdir=runs/shapes --prompts="a red circle" --prompts="a blue star"
    python sample.py --config=configs/shapes.py --prompts="a circle" --negative_prompt="red"
    python sample.py --config=configs/shapes.py --init_image=mine.png --mask=mask.png
    python sample.py --config=configs/shapes.py --upscale=mine.png

Pictures are written as they are drawn. If it is interrupted, the same command continues it.

Sampling settings come from --config, else from the weights. --num_steps, --guidance_weight and the
like replace them, for all stages (--num_steps=50) or by stage (--num_steps=base=50,sr64=20).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl.flags import (
    DEFINE,
    ArgumentParser,
    DEFINE_boolean,
    DEFINE_integer,
    DEFINE_multi_string,
    DEFINE_string,
    FlagValues,
)
from etils import epath

from imagen_jax.aspect import SQUARE, parse_aspect
from imagen_jax.cli import common, config_flag
from imagen_jax.cli.edit_flags import define_edit_flags, framing, read_edit, starts_from_picture
from imagen_jax.cli.sampling_flags import (
    check_sampling_flags,
    define_sampling_flags,
    override,
    sampling_flag_values,
)
from imagen_jax.cli.weights_flags import (
    define_text_encoder_flag,
    define_weights_flags,
    find_weights,
    load_named,
    sampling_settings,
    text_encoder,
)
from imagen_jax.errors import UserError, brief

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig
    from imagen_jax.weights.artefact import Artefact


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, see `common.run`."""
    interrupted = "Interrupted. The pictures drawn so far are kept; the same command continues."
    return common.run(__doc__, define_flags, sample, arguments, interrupted)


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of this command."""
    define_weights_flags(flags)
    define_text_encoder_flag(flags)
    DEFINE_multi_string("prompts", [], "A prompt. May be repeated.", flag_values=flags)
    DEFINE_string(
        "prompts_file",
        None,
        "File with one prompt per line; FILE.jsonl with one object per line: "
        '{"prompt": "...", "negative_prompt": "..."}, the second is optional.',
        flag_values=flags,
    )
    DEFINE_string(
        "negative_prompt",
        None,
        "What guidance moves away from, for prompts without a negative prompt of their own. "
        "Default: no text.",
        flag_values=flags,
    )
    DEFINE_boolean(
        "prompt_weights",
        False,
        r"Read (red circle:1.4) in prompts as a weight; \( and \) are brackets themselves.",
        flag_values=flags,
    )
    DEFINE_string(
        "guide_weights",
        None,
        "Weaker weights (a directory, or a name as of --weights) for autoguidance.",
        flag_values=flags,
    )
    DEFINE_integer("num_images", 4, "Pictures per prompt.", lower_bound=1, flag_values=flags)
    DEFINE_integer(
        "seed",
        0,
        "Seed of each prompt's first picture.",
        lower_bound=0,
        upper_bound=2**32 - 1,
        flag_values=flags,
    )
    DEFINE_string(
        "stages", None, "Stages to run, such as base,sr64. Default: all.", flag_values=flags
    )
    DEFINE_string(
        "low_res_image",
        None,
        "Enlarge the picture in this file instead of drawing one.",
        flag_values=flags,
    )
    DEFINE(
        _AspectParser(),
        "aspect",
        SQUARE,
        "Width to height, such as 3:2: one of those that the stages were trained in.",
        flag_values=flags,
    )
    DEFINE_integer("batch_size", None, "Pictures drawn at once.", lower_bound=1, flag_values=flags)
    DEFINE_string(
        "out",
        None,
        "Directory for the pictures. Other pictures in it are not overwritten. Default: "
        "outputs/NAME, where NAME begins with the first prompt and is another one for other "
        "prompts, settings or weights.",
        flag_values=flags,
    )
    define_edit_flags(flags)
    define_sampling_flags(flags)


class _AspectParser(ArgumentParser):
    """Refuses what is no aspect ratio; the text stays as it is."""

    def parse(self, argument: str) -> str:
        parse_aspect(argument, "--aspect")
        return argument

    def flag_type(self) -> str:
        return "string"


def sample(flags: FlagValues, config: CascadeConfig | None) -> None:
    """Draws and saves what the flags ask for."""
    # What needs no weights is checked first, before seconds go into imports.
    pairs = read_prompts(flags.prompts, flags.prompts_file)
    if not pairs:
        if flags.low_res_image is None and not starts_from_picture(flags):
            raise UserError('no prompt is given: add --prompts="..." or --prompts_file=FILE')
        pairs = [("", None)]
    prompts = tuple(prompt for prompt, _ in pairs)
    negative = tuple(flags.negative_prompt if own is None else own for _, own in pairs)
    if flags.prompt_weights:
        from imagen_jax.text.prompt_weights import parse_weights

        for prompt in (*prompts, *filter(None, negative)):
            parse_weights(prompt)
    if flags.low_res_image is not None and not epath.Path(flags.low_res_image).exists():
        raise UserError(f"--low_res_image={flags.low_res_image} does not exist")
    if flags.out is not None and Path(flags.out).exists() and not Path(flags.out).is_dir():
        raise UserError(f"--out={flags.out} is a file; give a directory")
    check_sampling_flags(sampling_flag_values(flags))
    edit = read_edit(flags)

    artefact = find_weights(config_flag.path(flags), config, flags.workdir, flags.weights)
    guide = None
    if flags.guide_weights is not None:
        guide = load_named("--guide_weights", flags.guide_weights)
    settings = override(
        sampling_flag_values(flags), artefact.config, sampling_settings(config, artefact)
    )

    from imagen_jax.files import explain_full_disk
    from imagen_jax.progress import progress_bar
    from imagen_jax.sampling import Cascade, PictureFolder, Request
    from imagen_jax.sampling.request import picture_seeds

    common.setup_jax()
    _describe(artefact)
    cascade = Cascade.from_artefact(artefact, text_encoder=text_encoder(flags, config), guide=guide)
    chain, frame = framing(flags, cascade, edit)
    request = Request(
        prompts=prompts,
        seeds=picture_seeds(flags.seed, None, flags.num_images),
        settings={name: settings[name] for name in chain},
        batch_size=flags.batch_size,
        negative_prompts=negative,
        prompt_weights=flags.prompt_weights,
        guided_stages=cascade.guided(chain),
        **frame,
    )
    origin = cascade.origin(request)
    out = Path(flags.out or Path("outputs") / origin.directory_name())
    folder = PictureFolder(out, origin)
    last = chain[-1]
    before = sum(folder.has(last, row) for row in range(request.total))
    if before:
        print(f"{before:,} of {request.total:,} pictures in {out}/ were drawn before")
    start = time.perf_counter()
    with explain_full_disk(folder.path):
        with progress_bar() as show:
            cascade.draw(request, folder, show)
        grids = folder.write_grids()
    seconds = time.perf_counter() - start
    drawn = request.total - before
    pictures = "1 picture" if drawn == 1 else f"{drawn:,} pictures"
    stages = f" (each by the stages {', '.join(chain)})" if len(chain) > 1 else ""
    first = next(grid for grid in grids if grid.name.startswith(f"grid_{last}"))
    print(f"{pictures}{stages} in {seconds:.0f} s, in {out}/. Look at {first}")


def read_prompts(given: Sequence[str], path: str | None) -> list[tuple[str, str | None]]:
    """The prompts of the flags, then those of the file, blank lines left out.

    Returns:
      Prompts, each with its negative prompt or None. Only a file FILE.jsonl has negative ones.

    Raises:
      UserError: the file cannot be read, is no UTF-8 text, or is empty; or a line of a FILE.jsonl
        is no prompt.
    """
    prompts = [(prompt, None) for prompt in given]
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise UserError(f"--prompts_file={path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"--prompts_file={path} is not UTF-8 text") from error
        # Not splitlines(), which also breaks at characters that may occur within a prompt.
        lines = [line.strip() for line in text.split("\n")]
        lines = [line for line in lines if line]
        if not lines:
            raise UserError(f"--prompts_file={path} holds no prompt: write one a line")
        is_json = path.endswith(".jsonl")
        prompts += [_from_json(path, line) if is_json else (line, None) for line in lines]
    return prompts


def _from_json(path: str, line: str) -> tuple[str, str | None]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise UserError(f"--prompts_file={path}: {brief(line)} is not JSON: {error}") from error
    known = {"prompt", "negative_prompt"}
    if (
        not isinstance(values, dict)
        or "prompt" not in values
        or values.keys() - known
        or not all(isinstance(value, str) for value in values.values())
    ):
        raise UserError(
            f"--prompts_file={path}: {brief(line)} is no prompt; write "
            '{"prompt": "...", "negative_prompt": "..."}, of which the second may be left out'
        )
    return values["prompt"], values.get("negative_prompt")


def _describe(artefact: Artefact) -> None:
    """Prints what the weights are, and warns if they have hardly been trained."""
    from imagen_jax.weights.artefact import few_images, typical_images

    for name, stage in artefact.config.ordered_stages().items():
        if name not in artefact.stages:
            print(f"{name}: has no weights yet")
            continue
        weights = artefact.stages[name]
        share = weights.images_seen / typical_images(weights.num_parameters)
        print(
            f"{name}: {stage.resolution}x{stage.resolution}, {weights.num_parameters:,} "
            f"parameters, trained on {weights.images_seen:,} images ({share:.1%} of what is "
            f"typical for its size), sha256 {weights.sha256[:12]}"
        )
        warning = few_images(weights.images_seen, weights.num_parameters)
        if warning:
            print(f"warning: {name}: {warning}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
