"""Plans a stage for a TPU slice that is not there, or for this machine's devices.

    python -m imagen_jax.cli.plan --config=configs/imagen.py --stage=base --topology=v5e:16x16 \
        --text_dim=4096

Compiles the train step (and the sampler) that `train.py` would run, and prints memory, traffic
between chips, an estimate of speed, and whether it fits. Settings are overridden as in `train.py`.
Results are kept; the same plan is printed at once the next time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl.flags import (
    DEFINE_bool,
    DEFINE_enum,
    DEFINE_float,
    DEFINE_integer,
    DEFINE_string,
    FlagValues,
)

from imagen_jax.cli import common, config_flag
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig

LOCAL = "local"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, see `common.run`."""
    return common.run(__doc__, define_flags, plan, arguments)


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of this command."""
    DEFINE_string("stage", None, "The stage. Default: the only one.", flag_values=flags)
    DEFINE_string(
        "topology",
        LOCAL,
        "v4, v5e, v5p or v6e and the chips along each axis, such as v5e:8x8 or v4:4x4x8, with *2 "
        "behind it for two slices; or local, for the devices of this machine.",
        flag_values=flags,
    )
    DEFINE_enum(
        "program",
        "train",
        ["train", "sample", "both"],
        "What to compile: the train step, the sampler, or both.",
        flag_values=flags,
    )
    DEFINE_enum(
        "effort",
        "low",
        ["low", "full"],
        "Of the TPU compiler. low is several times faster, with memory up to 30 % off.",
        flag_values=flags,
    )
    DEFINE_integer(
        "text_dim",
        None,
        "Width of the text embeddings. Default: that of the config's encoder.",
        lower_bound=1,
        flag_values=flags,
    )
    DEFINE_float(
        "efficiency",
        0.5,
        "Assumed share of the matrix peak.",
        lower_bound=0.01,
        upper_bound=1,
        flag_values=flags,
    )
    DEFINE_bool("json", False, "Print JSON.", flag_values=flags)


def plan(flags: FlagValues, config: CascadeConfig | None) -> None:
    """Plans what the flags say."""
    config = config_flag.require(config)
    name = choose_stage(flags, config)

    if flags.topology != LOCAL:
        prepare_environment()
    # Imported after the environment is set: JAX reads it.
    from imagen_jax.planning.report import describe, make_plan, to_json_dict
    from imagen_jax.planning.topology import parse_topology

    if flags.topology == LOCAL:
        common.setup_jax()  # `train.py` then finds the program that is compiled here

    topology = parse_topology(flags.topology)
    text_dim = flags.text_dim or text_width(config)
    programs = ["train", "sample"] if flags.program == "both" else [flags.program]
    plans = []
    for program in programs:
        made = make_plan(
            program,
            config,
            name,
            text_dim,
            topology,
            effort=flags.effort,
            efficiency=flags.efficiency,
            print_line=lambda line: print(line, file=sys.stderr, flush=True),
        )
        plans.append(to_json_dict(made))
        if not flags.json:
            print(describe(made), flush=True)
    if flags.json:
        print(json.dumps(plans if len(plans) > 1 else plans[0], indent=1))


def prepare_environment() -> None:
    """Keeps JAX away from devices; it only needs the compiler of TPUs, which must not open one."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    common.silence_libtpu()

    import jax

    # The config may have imported JAX, which reads JAX_PLATFORMS then.
    jax.config.update("jax_platforms", "cpu")


def choose_stage(flags: FlagValues, config: CascadeConfig) -> str:
    """The stage of `--stage`. Raises UserError."""
    stages = list(config.ordered_stages())
    if flags.stage is None and len(stages) == 1:
        return stages[0]
    if flags.stage not in stages:
        given = "is needed" if flags.stage is None else f"{flags.stage} is not in the config"
        raise UserError(f"--stage {given}: one of {', '.join(stages)}")
    return flags.stage


def text_width(config: CascadeConfig) -> int:
    """The width of the text embeddings, without loading or fetching any weights.

    Raises:
      UserError: the encoder is not on this machine, or the stored embeddings are not its own.
    """
    from imagen_jax.text.embedding_store import open_store
    from imagen_jax.text.encoder import is_local, text_dim

    if config.data.embeddings:
        return open_store(config.data.embeddings, config.text).dim
    if not is_local(config.text):
        raise UserError(
            f"config.text.encoder={config.text.encoder!r} is not a directory on this machine; to "
            f"plan without it, give its width: --text_dim=4096"
        )
    return text_dim(config.text)


if __name__ == "__main__":
    sys.exit(main())
