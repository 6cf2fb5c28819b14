"""The weights that a command works on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from imagen_jax.config import CascadeConfig
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.weights.artefact import Artefact


def find_weights(
    config_path: str | None, config: CascadeConfig | None, workdir: str | None
) -> Artefact:
    """The weights of a run or, for a config alone, those shipped under its name.

    Raises:
      UserError: there are none (the message has the command that trains them), or they are of
        another network than `config` describes.
    """
    from imagen_jax.weights import artefact as artefact_lib

    if workdir is not None:
        artefact = artefact_lib.load(workdir)
    elif config is None:
        raise UserError(
            "give --config=configs/NAME.py (weights that ship with the package: "
            f"{', '.join(artefact_lib.shipped_names()) or 'none'}) or --workdir=DIR (a run). To "
            "train one: python train.py --config=configs/NAME.py --workdir=runs/NAME"
        )
    else:
        name = config.name or Path(config_path).stem
        artefact = artefact_lib.load_shipped(name)
        if artefact is None:
            raise UserError(
                f"no weights ship under the name {name!r} (there are: "
                f"{', '.join(artefact_lib.shipped_names()) or 'none'}). Train them: python "
                f"train.py --config={config_path} --workdir=runs/{name}, then sample with "
                f"--workdir=runs/{name}"
            )
    if config is not None:
        _check_same_network(config, artefact, config_path)
    return artefact


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
