"""A plan: one stage on one slice, as plain data and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from imagen_jax.config import CascadeConfig, StageConfig
from imagen_jax.planning import cache
from imagen_jax.planning.estimate import EFFICIENCY, Estimate, estimate
from imagen_jax.planning.programs import TRAIN, Facts, compile_program, lower_program
from imagen_jax.planning.topology import Topology, compiler_version
from imagen_jax.planning.traffic import SEND, Traffic, read_traffic
from imagen_jax.training.summary import human_bytes

SECONDS_A_DAY = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One program of one stage on one slice.

    Attributes:
      stage_name, stage: the planned stage.
      topology: the slice.
      facts: the compiler's figures.
      traffic: None if the program does not fit.
      estimate: None if the program does not fit or the chip is unknown.
      effort: of the compiler, "low" or "full".
      compiler: package and version of the compiler.
      from_cache: whether the program was compiled before.
    """

    stage_name: str
    stage: StageConfig
    topology: Topology
    facts: Facts
    traffic: Traffic | None
    estimate: Estimate | None
    effort: str
    compiler: str
    from_cache: bool

    @property
    def hbm(self) -> float | None:
        """Bytes that a program may use on a chip; None if unknown."""
        return self.topology.chip.hbm if self.topology.chip else None

    @property
    def needed(self) -> float | None:
        """Bytes that the program needs: peak memory and code; None if unknown."""
        if self.facts.peak_bytes is None:
            return self.facts.needed_bytes
        return self.facts.peak_bytes + self.facts.code_bytes

    @property
    def fits(self) -> bool | None:
        """Whether the program fits; None if the memory of the chip is unknown."""
        if self.facts.too_large:
            return False
        return None if self.hbm is None else self.needed <= self.hbm

    @property
    def padding_bytes(self) -> int | None:
        """Bytes of padding in the arguments."""
        facts = self.facts
        if facts.argument_bytes is None:
            return None
        return facts.argument_bytes - facts.state_bytes - facts.batch_bytes

    @property
    def images_per_second(self) -> float | None:
        """Pictures per second: those of one run over its estimated time."""
        return self.facts.rows / self.estimate.seconds if self.estimate else None

    @property
    def days(self) -> float | None:
        """Estimated days to `train.num_steps`."""
        if self.estimate is None or self.facts.program != TRAIN:
            return None
        return self.stage.train.num_steps * self.estimate.seconds / SECONDS_A_DAY


def make_plan(
    program: str,
    config: CascadeConfig,
    name: str,
    text_dim: int,
    topology: Topology,
    *,
    effort: str,
    efficiency: float = EFFICIENCY,
    print_line: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Compiles a program, or reads it from the cache, and estimates its time.

    Args:
      program: "train" or "sample".
      config: the cascade.
      name: of the stage.
      text_dim: width D of the text encoder.
      topology: the slice.
      effort: of the compiler, "low" or "full".
      efficiency: see `estimate.EFFICIENCY`.
      print_line: called with a line before a compilation.

    Raises:
      UserError: the settings contradict each other or do not fit the devices, or the compiler is
        not installed.
    """
    key = cache.plan_key(program, config, name, text_dim, topology, effort)
    found = cache.load(key)
    if found is None:
        facts, lowered = lower_program(program, config, name, text_dim, topology)
        program_key = cache.program_key(lowered, topology, effort)
        found = cache.load(program_key)
        if found is None:
            print_line(f"compiling the {program} program of {name} for {topology.name} ...")
            compiled = compile_program(facts, lowered, topology, effort)
            cache.store(program_key, *compiled)
        cache.store(key, *(found or compiled))
    facts, text = found or compiled
    traffic = expected = None
    if text:
        traffic = read_traffic(text, topology.num_chips)
        expected = estimate(
            topology,
            traffic,
            model_flops=facts.model_flops,
            executed_flops=facts.executed_flops,
            efficiency=efficiency,
        )
    package = "libtpu" if topology.version else "jaxlib"
    return Plan(
        stage_name=name,
        stage=config.stages[name],
        topology=topology,
        facts=facts,
        traffic=traffic,
        estimate=expected,
        effort=effort,
        compiler=f"{package} {compiler_version(topology)}",
        from_cache=found is not None,
    )


def to_json_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON values; bytes are per chip, FLOPs of all chips."""
    facts, traffic = plan.facts, plan.traffic
    return {
        "stage": plan.stage_name,
        "program": facts.program,
        "topology": plan.topology.name,
        "chips": plan.topology.num_chips,
        "mesh": facts.mesh,
        "parameters": facts.parameters,
        "batch_size": facts.rows,
        "compiler": plan.compiler,
        "effort": plan.effort,
        "compile_seconds": facts.compile_seconds,
        "from_cache": plan.from_cache,
        "fits": plan.fits,
        "memory": {
            "available_bytes": plan.hbm,
            "needed_bytes": plan.needed,
            "peak_bytes": facts.peak_bytes,
            "state_bytes": facts.state_bytes,
            "batch_bytes": facts.batch_bytes,
            "padding_bytes": plan.padding_bytes,
            "temporary_bytes": _temporaries(facts),
            "code_bytes": facts.code_bytes,
            "compiler_message": facts.too_large,
        },
        "collectives": [dataclasses.asdict(c) for c in traffic.collectives] if traffic else None,
        "memory_traffic_bytes": traffic.memory_bytes if traffic else None,
        "unknown_loops": traffic.unknown_loops if traffic else None,
        "model_flops": facts.model_flops,
        "executed_flops": facts.executed_flops,
        "estimate": dataclasses.asdict(plan.estimate) if plan.estimate else None,
        "images_per_second": plan.images_per_second,
        "days": plan.days,
    }


def describe(plan: Plan) -> str:
    """The plan as text."""
    facts, topology = plan.facts, plan.topology
    axes = " x ".join(f"{axis} {extent}" for axis, extent in facts.mesh.items())
    kind = topology.chip.kind if topology.chip else "local device"
    source = "from the cache" if plan.from_cache else f"compiled in {facts.compile_seconds:.0f} s"
    what = {"train": "train step", "sample": "sampler"}[facts.program]
    effort = f", effort {plan.effort}" if topology.version else ""
    lines = [
        f"{plan.stage_name}: {what} on {topology.name}",
        f"  devices      {topology.num_chips} x {kind} ({axes})",
        f"  compiler     {plan.compiler}{effort}, {source}",
        f"  parameters   {facts.parameters:,}",
        f"  pictures     {facts.rows:,} a run",
        *_memory_lines(plan),
    ]
    if plan.traffic is not None:
        lines += _collective_lines(plan.traffic)
    lines += _time_lines(plan)
    lines += _verdict_lines(plan)
    if plan.effort == "low" and topology.version:
        lines.append(
            "  note         low effort compiles several times faster; memory may differ by up to "
            "30 % from that of a real run (--effort=full)"
        )
    return "\n".join(lines)


def _temporaries(facts: Facts) -> int | None:
    return None if facts.peak_bytes is None else facts.peak_bytes - facts.argument_bytes


def _memory_lines(plan: Plan) -> list[str]:
    facts = plan.facts
    state = "state" if facts.program == TRAIN else "weights"
    parts = [(state, facts.state_bytes), ("batch", facts.batch_bytes)]
    if facts.peak_bytes is not None:
        share = plan.padding_bytes / max(facts.argument_bytes, 1)
        parts += [
            ("padding", plan.padding_bytes),
            ("temporaries", _temporaries(facts)),
            ("code", facts.code_bytes),
        ]
        total = f"{human_bytes(plan.needed)} needed"
        waste = f"; {share:.0%} of what arguments take is padding"
    else:
        total = f"{human_bytes(plan.needed)} needed at least" if plan.needed else "too much"
        waste = ""
    available = "" if plan.hbm is None else f" of {human_bytes(plan.hbm)} a chip"
    return [
        f"  memory       {total}{available}{waste}",
        *(f"    {name:<12}{human_bytes(size):>12}" for name, size in parts),
    ]


def _collective_lines(traffic: Traffic) -> list[str]:
    lines = ["  collectives  number, and bytes that a chip sends in a run"]
    for collective in traffic.collectives:
        kind = "to other slices" if collective.kind == SEND else collective.kind
        lines.append(f"    {kind:<20}{collective.count:>8,}{human_bytes(collective.bytes):>14}")
    if not traffic.collectives:
        lines.append("    none")
    if traffic.unknown_loops:
        lines.append(f"    {traffic.unknown_loops} loop(s) of unknown length, counted once")
    return lines


def _time_lines(plan: Plan) -> list[str]:
    facts = plan.facts
    again = facts.executed_flops / facts.model_flops - 1
    lines = [
        f"  work         {facts.model_flops / 1e12:,.3g} TFLOP a run, {again:.0%} more executed "
        f"to save memory"
    ]
    expected = plan.estimate
    if plan.traffic is None:
        return lines
    if expected is None:
        return [*lines, "  time         unknown: the speed of this device is not in the table"]
    chip = plan.topology.chip
    network = f"{plan.topology.ici_bandwidth / 1e9:,.0f} GB/s within a slice"
    if plan.topology.num_slices > 1:
        network += f", {chip.dcn_bandwidth / 1e9:,.3g} GB/s between"
    lines += [
        f"  time         {expected.seconds:.3g} s a run, {expected.bound} bound: an estimate, not "
        f"a measurement",
        f"    compute     {expected.compute:>9.3g} s  at {expected.efficiency:.0%} (assumed) of "
        f"{chip.bf16_flops / 1e12:,.0f} TFLOP/s a chip",
        f"    memory      {expected.memory:>9.3g} s  {human_bytes(plan.traffic.memory_bytes)} at "
        f"{chip.hbm_bandwidth / 1e9:,.0f} GB/s",
        f"    network     {expected.network:>9.3g} s  {network}",
        f"  rate         {plan.images_per_second:,.4g} images/s, model-FLOPs utilisation "
        f"{expected.mfu:.0%}",
    ]
    if plan.days is not None:
        steps = plan.stage.train.num_steps
        lines.append(f"  run          {plan.days:,.3g} days to {steps:,} steps")
    return lines


def _verdict_lines(plan: Plan) -> list[str]:
    if plan.fits is None:
        return ["  fits         unknown: the memory of this device is unknown"]
    if plan.fits:
        return ["  fits         yes"]
    return ["  fits         NO. What helps:", *(f"    - {line}" for line in remedies(plan))]


def remedies(plan: Plan) -> list[str]:
    """Changes that make a plan fit, the cheapest first."""
    mesh, stage = plan.facts.mesh, f"--config.stages.{plan.stage_name}"
    lines = []
    state_share = plan.facts.state_bytes / plan.hbm if plan.hbm else 0
    if mesh["data"] > 1 and state_share > 0.1:
        lines.append(
            f"shard the state further: a larger --config.mesh.fsdp (now {mesh['fsdp']}; the state "
            f"takes {state_share:.0%} of a chip)"
        )
    if plan.facts.program == TRAIN:
        model, train = plan.stage.model, plan.stage.train
        if any(model.remat_of(level) != "full" for level in range(len(model.channels))):
            policies = ",".join(["'full'"] * len(model.channels))
            lines.append(
                f'recompute activations instead of keeping them: {stage}.model.remat="'
                f'({policies},)"'
            )
        rows = plan.facts.rows // (mesh["data"] * mesh["fsdp"] * train.accumulate)
        if rows > 1:
            lines.append(
                f"fewer pictures at once (now {rows} a chip): {stage}.train.accumulate="
                f"{2 * train.accumulate}, or a smaller {stage}.train.batch_size"
            )
    lines.append(f"more chips than {plan.topology.num_chips}, or chips with more memory")
    return lines
