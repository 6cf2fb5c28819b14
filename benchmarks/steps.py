"""Speed and memory of the train step and the guided denoising step of a stage.

    python -m benchmarks.steps --config=configs/shapes.py --stage=base
    python -m benchmarks.steps --config=configs/shapes.py --stage=base --compare=preset

With `--compare`, imagen-pytorch runs in the same call; the two processes take turns:

- `equal_graph`: its memory-efficient U-Net against the same graph made of this package's layers.
  Resolution, batch size and diffusion are the stage's, the network is `graphs.EQUAL_MODEL`.
- `preset`: the stage's network against the base U-Net of its README with as many parameters.
- `preset_efficient`: the same with its `memory_efficient=True`.

The results are printed as Markdown. See docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl.flags import (
    DEFINE_enum,
    DEFINE_float,
    DEFINE_integer,
    DEFINE_string,
    FlagValues,
)

from benchmarks import measure
from benchmarks.measure import Worker
from imagen_jax.cli import common, config_flag
from imagen_jax.config import CascadeConfig, StageConfig, to_json_dict
from imagen_jax.errors import UserError
from imagen_jax.models import EfficientUNetConfig
from imagen_jax.stage import open_stage

COMPARISONS = ("none", "equal_graph", "preset", "preset_efficient")


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of the command."""
    DEFINE_string("stage", None, "Stage of the config (default: its first).", flag_values=flags)
    DEFINE_enum(
        "compare", "none", COMPARISONS, "What to run from imagen-pytorch.", flag_values=flags
    )
    DEFINE_integer("rounds", 9, "Number of timings for each program.", 1, flag_values=flags)
    DEFINE_float("seconds", 2.0, "Approximate time of one timing.", 0.0, flag_values=flags)
    DEFINE_integer(
        "sampling_steps", 4, "Denoising steps in one call of the sampler.", 1, flag_values=flags
    )
    DEFINE_integer("threads", 0, "Number of cores to use (0: all).", 0, flag_values=flags)
    DEFINE_integer(
        "text_dim",
        0,
        "Width of the text embeddings (0: that of the config's encoder).",
        0,
        flag_values=flags,
    )
    DEFINE_string("json", None, "Also write all measurements to this file.", flag_values=flags)


@dataclasses.dataclass(frozen=True)
class Setting:
    """The stage to measure, and the shape of its text."""

    cascade: CascadeConfig
    name: str
    text_dim: int

    @property
    def stage(self) -> StageConfig:
        """Settings of the stage."""
        return self.cascade.stages[self.name]

    @property
    def text_length(self) -> int:
        """Tokens of every caption."""
        return self.cascade.text.max_length

    def with_model(self, model: EfficientUNetConfig) -> Setting:
        """The same setting with another network."""
        stages = self.cascade.stages | {self.name: dataclasses.replace(self.stage, model=model)}
        return dataclasses.replace(self, cascade=dataclasses.replace(self.cascade, stages=stages))


def read_setting(flags: FlagValues, config: CascadeConfig | None) -> Setting:
    """The setting that the flags describe. Raises UserError."""
    config = config_flag.require(config)
    stages, name = config.ordered_stages(), flags.stage
    if name is not None and name not in stages:
        raise UserError(f"--stage={name} is not one of {', '.join(stages)}")
    text_dim = flags.text_dim
    if not text_dim:
        from imagen_jax.text import encoder, t5_load

        # Only the width is read: loading the encoder would take a device that the workers need.
        path = config.text.encoder
        directory = encoder.EMBEDDED.get(path) or Path(path)
        text_dim = t5_load.read_config(directory.expanduser(), "float32").d_model
    return Setting(cascade=config, name=name or next(iter(stages)), text_dim=text_dim)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, see `common.run`."""
    return common.run(__doc__, define_flags, compare_steps, arguments)


def compare_steps(flags: FlagValues, config: CascadeConfig | None) -> None:
    """Measures and prints."""
    # Imported here so that --help and wrong flags answer at once.
    from benchmarks import imagen_pytorch_peer, ours
    from benchmarks.graphs import EQUAL_MODEL

    compare, setting = flags.compare, read_setting(flags, config)
    open_it, make_unet = open_stage, imagen_pytorch_peer.readme_unet
    if compare != "none":
        if setting.stage.low_resolution:
            raise UserError(f"--compare={compare} needs a base stage (low_resolution=0)")
        if setting.stage.model.dtype != "float32":
            raise UserError(f"--compare={compare} needs model.dtype='float32'")
        imagen_pytorch_peer.check_installed()
    if compare == "preset_efficient":
        make_unet = imagen_pytorch_peer.readme_unet_memory_efficient
    if compare == "equal_graph":
        setting = setting.with_model(EQUAL_MODEL)
        open_it, make_unet = ours.open_equal_graph, imagen_pytorch_peer.equal_unet

    workers = []
    try:
        steps = flags.sampling_steps
        shape = (setting.cascade, setting.name, setting.text_dim, steps)
        workers.append(start_worker("imagen-jax", flags.threads, ours.build, open_it, *shape))
        if compare != "none":
            build = functools.partial(imagen_pytorch_peer.build, parameters=workers[0].parameters)
            shape = (setting.stage, setting.text_length, setting.text_dim, steps)
            workers.append(start_worker("imagen-pytorch", flags.threads, build, make_unet, *shape))
        measure_and_print(workers, setting, flags)
    finally:
        for worker in workers:
            worker.close()


def start_worker(name: str, threads: int, build: Callable, *arguments: object) -> Worker:
    """A process with the programs that `build(*arguments)` compiles."""
    print(f"building {name} ...", file=sys.stderr, flush=True)
    return Worker(name, build, threads, arguments)


def measure_and_print(workers: list[Worker], setting: Setting, flags: FlagValues) -> None:
    """Runs the workers in turns, prints the tables and writes the JSON file."""
    rounds, json_path = flags.rounds, flags.json
    print(f"timing {rounds} rounds ...", file=sys.stderr, flush=True)
    results = measure.alternate(workers, rounds, flags.seconds)
    parameters = {worker.name: worker.parameters for worker in workers}
    stage = setting.stage
    cores = flags.threads or len(os.sched_getaffinity(0))
    print(
        f"{stage.resolution} px, batch {stage.train.batch_size}, {setting.text_length} tokens of "
        f"{setting.text_dim}, {stage.model.dtype}, {workers[0].device}, {cores} cores, "
        f"{rounds} rounds\n\n{measure.results_table(results, parameters)}"
    )
    if len(workers) == 2:
        print(f"\n{measure.ratio_table(results, parameters)}")
    if json_path is not None:
        content = {
            "arguments": sys.argv[1:],
            "device": workers[0].device,
            "cores": cores,
            "stage": to_json_dict(stage),
            "text": [setting.text_length, setting.text_dim],
            "parameters": parameters,
            "results": measure.as_json(results),
        }
        Path(json_path).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    sys.exit(main())
