"""The weights that a command works on: `--workdir`, `--weights`, or what ships for `--config`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from absl.flags import DEFINE_string, FlagValues

from imagen_jax.cli import config_flag
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig, SampleConfig
    from imagen_jax.weights.artefact import Artefact


def define_weights_flags(flags: FlagValues) -> None:
    """Defines the flags that `find_weights` reads."""
    DEFINE_string(
        "workdir",
        None,
        "Directory of a run (it may still be training) or of exported weights. Default: the "
        "weights that ship under the name of --config.",
        flag_values=flags,
    )
    DEFINE_string(
        "weights",
        None,
        "Name of weights that ship with the package, or directory of exported weights.",
        flag_values=flags,
    )


def define_text_encoder_flag(flags: FlagValues) -> None:
    """Defines the flag that `text_encoder` reads."""
    DEFINE_string(
        "text_encoder",
        None,
        "Directory of the text encoder, if it was moved since training.",
        flag_values=flags,
    )


def text_encoder(flags: FlagValues, config: CascadeConfig | None) -> str | None:
    """The encoder that the command line names, None for the one that the weights name."""
    if flags.text_encoder is None and config_flag.is_overridden(flags, "text.encoder"):
        return config.text.encoder
    return flags.text_encoder


def find_weights(
    config_path: str | None, config: CascadeConfig | None, workdir: str | None, weights: str | None
) -> Artefact:
    """The weights that the flags name or, for a config alone, those shipped under its name.

    Args:
      config_path: what the user wrote after `--config=`.
      config: the config itself, None without the flag.
      workdir: of `--workdir`.
      weights: of `--weights`.

    Raises:
      UserError: there are none (the message has the command that trains them), or they are of
        another network than `config` describes.
    """
    from imagen_jax.weights.reading import load
    from imagen_jax.weights.shipped import load_shipped, shipped_names

    if workdir is not None and weights is not None:
        raise UserError(f"give --workdir={workdir} or --weights={weights}, not both")
    shipped = ", ".join(shipped_names()) or "none"
    if workdir is not None:
        artefact = load(workdir)
    elif weights is not None:
        artefact = load_named("--weights", weights)
    elif config is None:
        raise UserError(
            "give --workdir=DIR (a run), --weights=NAME|DIR (weights that ship with the package: "
            f"{shipped}; or exported ones) or --config=NAME (what ships under that name). To "
            "train weights: python train.py --config=configs/NAME.py --workdir=runs/NAME"
        )
    else:
        name = config.name or Path(config_path).stem
        artefact = load_shipped(name)
        if artefact is None:
            raise UserError(
                f"no weights ship under the name {name!r} (there are: {shipped}). Train them: "
                f"python train.py --config={config_path} --workdir=runs/{name}, then give "
                f"--workdir=runs/{name}"
            )
    if config is not None:
        _check_same_network(config, artefact, config_path)
    return artefact


def load_named(flag: str, value: str) -> Artefact:
    """The weights that ship under the name `value`, else those in the directory `value`.

    Args:
      flag: from which the value comes, for messages.
      value: a name or a directory.

    Raises:
      UserError: it is neither (the message lists what ships), or the weights cannot be read.
    """
    from etils import epath

    from imagen_jax.weights.reading import load
    from imagen_jax.weights.shipped import load_shipped, shipped_names

    artefact = load_shipped(value)
    if artefact is not None:
        return artefact
    if not value or not epath.Path(value).exists():
        shipped = ", ".join(shipped_names()) or "none"
        raise UserError(
            f"{flag}={value} is not a directory and not the name of weights that ship "
            f"with the package ({shipped})"
        )
    return load(value)


def sampling_settings(config: CascadeConfig | None, artefact: Artefact) -> dict[str, SampleConfig]:
    """The sampling settings of `config` by stage, for the stages that have weights."""
    if config is None:
        return {}
    return {name: config.stages[name].sample for name in artefact.stages if name in config.stages}


def _check_same_network(config: CascadeConfig, artefact: Artefact, path: str) -> None:
    for name in artefact.stages:
        if name not in config.stages:
            continue
        mine, theirs = config.stages[name], artefact.config.stages[name]
        for part in ("resolution", "low_resolution", "model", "diffusion"):
            if getattr(mine, part) != getattr(theirs, part):
                raise UserError(
                    f"{path}: {name}.{part} is not what the weights were trained with "
                    f"({getattr(theirs, part)}). Train with this config and give its --workdir, "
                    "or leave out --config"
                )
