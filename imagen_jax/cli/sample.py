"""Draws pictures from prompts with a trained cascade.

    python sample.py --config=configs/shapes.py --prompts="a red circle" --out=out
    python sample.py --workdir=runs/shapes --prompts="a red circle" --prompts="a blue star"

Sampling settings come from --config, else from the weights. --num_steps, --guidance_weight and the
like replace them, for all stages (--num_steps=50) or by stage (--num_steps=base=50,sr64=20).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl.flags import DEFINE_integer, DEFINE_multi_string, DEFINE_string, FlagValues

from imagen_jax.cli import common, config_flag
from imagen_jax.cli.sampling_flags import (
    define_sampling_flags,
    override,
    sampling_flag_values,
)
from imagen_jax.cli.weights_flags import (
    define_text_encoder_flag,
    define_weights_flags,
    find_weights,
    sampling_settings,
    text_encoder,
)
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig
    from imagen_jax.weights.artefact import Artefact


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, see `common.run`."""
    interrupted = "Interrupted; no picture is written."
    return common.run(__doc__, define_flags, sample, arguments, interrupted)


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of this command."""
    define_weights_flags(flags)
    define_text_encoder_flag(flags)
    DEFINE_multi_string("prompts", [], "A prompt. May be repeated.", flag_values=flags)
    DEFINE_string("prompts_file", None, "File with one prompt per line.", flag_values=flags)
    DEFINE_integer("num_images", 4, "Pictures per prompt.", flag_values=flags)
    DEFINE_integer("seed", 0, "Seed of each prompt's first picture.", flag_values=flags)
    DEFINE_string(
        "stages", None, "Stages to run, such as base,sr64. Default: all.", flag_values=flags
    )
    DEFINE_string(
        "low_res_image",
        None,
        "Enlarge the picture in this file instead of drawing one.",
        flag_values=flags,
    )
    DEFINE_string(
        "aspect",
        "1:1",
        "Width to height, such as 3:2: one of those that the stages were trained in.",
        flag_values=flags,
    )
    DEFINE_integer("batch_size", None, "Pictures drawn at once.", flag_values=flags)
    DEFINE_string("out", "outputs", "Directory for the pictures.", flag_values=flags)
    define_sampling_flags(flags)


def sample(flags: FlagValues, config: CascadeConfig | None) -> None:
    """Draws and saves what the flags ask for."""
    # What needs no weights is checked first, before seconds go into imports.
    prompts = read_prompts(flags.prompts, flags.prompts_file)
    if not prompts:
        if flags.low_res_image is None:
            raise UserError('no prompt is given: add --prompts="..." or --prompts_file=FILE')
        prompts = [""]
    out = Path(flags.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a directory")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made: {error.strerror}") from error

    artefact = find_weights(config_flag.path(flags), config, flags.workdir, flags.weights)
    stages = None if flags.stages is None else [name.strip() for name in flags.stages.split(",")]
    settings = override(
        sampling_flag_values(flags), artefact.config, sampling_settings(config, artefact)
    )

    from imagen_jax.sampling import Cascade

    common.setup_jax()
    _describe(artefact)
    cascade = Cascade.from_artefact(artefact, text_encoder=text_encoder(flags, config))
    chain = cascade.chain(stages, flags.low_res_image is not None)
    start = time.perf_counter()
    result = cascade(
        prompts,
        num_images=flags.num_images,
        seed=flags.seed,
        stages=chain,
        low_res_image=flags.low_res_image,
        aspect=flags.aspect,
        settings={name: settings[name] for name in chain},
        batch_size=flags.batch_size,
        progress=True,
    )
    seconds = time.perf_counter() - start
    grids = result.save(out)
    count = sum(len(pictures) for pictures in result.images.values())
    print(f"{count} pictures in {seconds:.0f} s, in {out}/. Look at {grids[-1]}")


def read_prompts(given: Sequence[str], path: str | None) -> list[str]:
    """The prompts of the flags, then those of the file, blank lines left out.

    Raises:
      UserError: the file cannot be read, is no UTF-8 text, or is empty.
    """
    prompts = list(given)
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
        prompts += lines
    return prompts


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
