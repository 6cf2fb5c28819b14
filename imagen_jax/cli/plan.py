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

from absl import flags

from imagen_jax.cli.common import define_config_flag, load_config_flag, run_command, setup_jax
from imagen_jax.config import CascadeConfig
from imagen_jax.errors import UserError

LOCAL = "local"

define_config_flag()
STAGE = flags.DEFINE_string("stage", None, "The stage (default: the only one).")
TOPOLOGY = flags.DEFINE_string(
    "topology",
    LOCAL,
    "v4, v5e, v5p or v6e and the chips along each axis, such as v5e:8x8 or v4:4x4x8; *2 behind it "
    "for two slices; or local, for the devices of this machine.",
)
PROGRAM = flags.DEFINE_enum(
    "program", "train", ["train", "sample", "both"], "What to compile: train step, sampler."
)
EFFORT = flags.DEFINE_enum(
    "effort",
    "low",
    ["low", "full"],
    "Of the TPU compiler: low is several times faster, with memory up to 30 % off.",
)
TEXT_DIM = flags.DEFINE_integer(
    "text_dim", None, "Width of the text embeddings (default: of the config's encoder)."
)
EFFICIENCY = flags.DEFINE_float(
    "efficiency", 0.5, "Share of the matrix peak that is assumed.", lower_bound=0.01, upper_bound=1
)
JSON = flags.DEFINE_bool("json", False, "Print JSON.")


def main(argv: list[str]) -> None:
    """Plans what the flags say."""
    del argv
    config = load_config_flag()
    if config is None:
        raise UserError("--config is needed: one of configs/*.py, or your own")
    name = choose_stage(config)

    if TOPOLOGY.value != LOCAL:
        prepare_environment()
    # Imported here: JAX reads its environment when it is imported.
    from imagen_jax.planning.report import describe, make_plan, to_json_dict
    from imagen_jax.planning.topology import parse_topology

    if TOPOLOGY.value == LOCAL:
        setup_jax()  # `train.py` then finds the program that is compiled here

    topology = parse_topology(TOPOLOGY.value)
    text_dim = TEXT_DIM.value or text_width(config)
    programs = ["train", "sample"] if PROGRAM.value == "both" else [PROGRAM.value]
    plans = []
    for program in programs:
        plan = make_plan(
            program,
            config,
            name,
            text_dim,
            topology,
            effort=EFFORT.value,
            efficiency=EFFICIENCY.value,
            print_line=lambda line: print(line, file=sys.stderr, flush=True),
        )
        plans.append(to_json_dict(plan))
        if not JSON.value:
            print(describe(plan), flush=True)
    if JSON.value:
        print(json.dumps(plans if len(plans) > 1 else plans[0], indent=1))


def prepare_environment() -> None:
    """Keeps JAX away from devices; it only needs the compiler of TPUs, which must not open one."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    # Else it tells what it did not find on this machine.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")


def choose_stage(config: CascadeConfig) -> str:
    """The stage of `--stage`. Raises UserError."""
    stages = list(config.ordered_stages())
    if STAGE.value is None and len(stages) == 1:
        return stages[0]
    if STAGE.value not in stages:
        given = "is needed" if STAGE.value is None else f"{STAGE.value} is not in the config"
        raise UserError(f"--stage {given}: one of {', '.join(stages)}")
    return STAGE.value


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
    run_command(main)
