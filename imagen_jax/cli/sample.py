"""The command line of `sample.py`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_jax.cli.weights_flags import find_weights
from imagen_jax.config import SQUARE, CascadeConfig, SampleConfig, load_config
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.weights.artefact import Artefact

# Flags that override a stage's SampleConfig, with their types.
OVERRIDES = {
    "guidance_weight": (float, "w; 1 is no guidance"),
    "threshold": (str, "none, static or dynamic"),
    "percentile": (float, "of dynamic thresholding, in percent"),
    "threshold_cap": (float, "upper bound of the dynamic threshold, 0 for none"),
    "sampler": (str, "ddim or ancestral"),
    "num_steps": (int, "steps per picture"),
    "eta": (float, "noise of ddim, 0 to 1"),
    "gamma": (float, "variance of ancestral, 0 to 1"),
    "aug_level": (float, "noise on the low-resolution picture, 0 to 1"),
}


def run() -> None:
    """Entry point."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 2, with the message alone, for a UserError."""
    flags = _parser().parse_args(arguments)
    try:
        _sample(flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; no picture is written.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sample.py",
        description="Draws pictures from prompts with a trained cascade.",
        allow_abbrev=False,
    )
    source = parser.add_argument_group("weights (one of the two)")
    source.add_argument(
        "--config", metavar="FILE", help="a file of configs/: the weights that ship under its name"
    )
    source.add_argument(
        "--workdir", metavar="DIR", help="a run, also while it trains, or exported weights"
    )
    source.add_argument(
        "--text_encoder", metavar="DIR", help="where the text encoder lies, if it was moved"
    )
    what = parser.add_argument_group("what to draw")
    what.add_argument(
        "--prompts", action="append", default=[], metavar="TEXT", help="may be repeated"
    )
    what.add_argument("--prompts_file", metavar="FILE", help="one prompt a line")
    what.add_argument("--num_images", type=int, default=4, help="per prompt (default 4)")
    what.add_argument("--seed", type=int, default=0, help="of each prompt's first picture")
    what.add_argument("--stages", help="stages to run, such as base,sr64 (default: all)")
    what.add_argument(
        "--start_image", metavar="FILE", help="enlarge this picture instead of drawing one"
    )
    what.add_argument(
        "--aspect",
        default=SQUARE,
        metavar="W:H",
        help="width to height, one that the stages were trained in (default 1:1)",
    )
    what.add_argument("--batch_size", type=int, help="pictures at once")
    what.add_argument(
        "--out", default="outputs", metavar="DIR", help="where the pictures go (default outputs)"
    )
    how = parser.add_argument_group(
        "settings (default: from the config)",
        "for all stages (--num_steps=50) or by stage (--num_steps=base=50,sr64=20)",
    )
    for name, (_, about) in OVERRIDES.items():
        how.add_argument(f"--{name}", help=about)
    return parser


def _sample(flags: argparse.Namespace) -> None:
    # What needs no weights is checked first, before seconds go into imports.
    config = load_config(flags.config) if flags.config else None
    prompts = read_prompts(flags.prompts, flags.prompts_file)
    if not prompts:
        if flags.start_image is None:
            raise UserError('no prompt is given: add --prompts="..." or --prompts_file=FILE')
        prompts = [""]
    out = Path(flags.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a directory")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made: {error.strerror}") from error

    artefact = find_weights(flags.config, config, flags.workdir)
    stages = None if flags.stages is None else [name.strip() for name in flags.stages.split(",")]
    settings = {
        name: config.stages[name].sample
        for name in artefact.stages
        if config is not None and name in config.stages
    }
    settings = override(flags, artefact.config, settings)

    from imagen_jax.cli.common import setup_jax
    from imagen_jax.sampling import Cascade

    setup_jax()
    _describe(artefact)
    cascade = Cascade.from_artefact(artefact, text_encoder=flags.text_encoder)
    chain = cascade.chain(stages, flags.start_image is not None)
    start = time.perf_counter()
    result = cascade(
        prompts,
        num_images=flags.num_images,
        seed=flags.seed,
        stages=chain,
        start_image=flags.start_image,
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


def override(
    flags: argparse.Namespace, config: CascadeConfig, settings: dict[str, SampleConfig]
) -> dict[str, SampleConfig]:
    """Settings for every stage: from the flags, else from `settings`, else from `config`.

    Raises:
      UserError: an unknown stage or a value of the wrong type.
    """
    merged = {
        name: settings.get(name, stage.sample) for name, stage in config.ordered_stages().items()
    }
    for field, (kind, _) in OVERRIDES.items():
        text = getattr(flags, field)
        if text is None:
            continue
        for name, value in parse_per_stage(field, text, kind, list(merged)).items():
            merged[name] = dataclasses.replace(merged[name], **{field: value})
    return merged


def parse_per_stage(flag: str, text: str, kind: type, stages: Sequence[str]) -> dict:
    """ "5" to {every stage: 5}, "base=5,sr64=2" to {"base": 5, "sr64": 2}. Raises UserError."""
    if "=" not in text:
        return dict.fromkeys(stages, _convert(flag, text, kind))
    values = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        name = name.strip()
        if name not in stages:
            raise UserError(
                f"--{flag}={text}: there is no stage {name!r}; the stages are {', '.join(stages)}"
            )
        values[name] = _convert(flag, value.strip(), kind)
    return values


def _convert(flag: str, text: str, kind: type):
    try:
        return kind(text)
    except ValueError as error:
        what = {float: "a number", int: "a whole number"}[kind]
        raise UserError(f"--{flag}: {text!r} is not {what}") from error


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
    run()
