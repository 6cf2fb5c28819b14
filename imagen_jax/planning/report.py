"""A plan: one stage on one slice, as plain data and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from imagen_jax.config import CascadeConfig, StageConfig
from imagen_jax.models.layers import remat_of
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
      stage_name, stage: what is planned.
      topology: where.
      facts: what the compiler said.
      traffic, estimate: None if the program did not fit (and the estimate, if the chip is unknown).
      effort: of the compiler, "low" or "full".
      compiler: its package and version.
      from_cache: whether it was compiled before.
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
        """Bytes that it needs: the peak and its own code."""
        if self.facts.peak_bytes is None:
            return self.facts.needed_bytes
        return self.facts.peak_bytes + self.facts.code_bytes

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None if the memory of the chip is unknown."""
        if self.facts.too_large:
            return False
        return None if self.hbm is None else self.needed <= self.hbm

    @property
    def padding_bytes(self) -> int | None:
        """What the arguments take beyond their numbers."""
        facts = self.facts
        if facts.argument_bytes is None:
            return None
        return facts.argument_bytes - facts.state_bytes - facts.batch_bytes

    @property
    def images_per_second(self) -> float | None:
        """Pictures that a run of the program takes or makes, over its estimated time."""
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
    tell: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Compiles a program, or takes it from the cache, and reads it.

    Raises:
      UserError: settings that do not fit each other or the devices; the compiler is missing.
    """
    key = cache.plan_key(program, config, name, text_dim, topology, effort)
    found = cache.load(key)
    if found is None:
        facts, lowered = lower_program(program, config, name, text_dim, topology)
        program_key = cache.program_key(lowered, topology, effort)
        found = cache.load(program_key)
        if found is None:
            tell(f"compiling the {program} program of {name} for {topology.name} ...")
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
    """The plan as plain data; bytes are of one chip, FLOPs of all."""
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
            "  note         low effort compiles several times faster; memory may be up to 30 % "
            "off that of a real run (--effort=full)"
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
    lines = ["  collectives  count and bytes that a chip sends in a run"]
    for collective in traffic.collectives:
        kind = "to other slices" if collective.kind == SEND else collective.kind
        lines.append(f"    {kind:<20}{collective.count:>8,}{human_bytes(collective.bytes):>14}")
    if not traffic.collectives:
        lines.append("    none")
    if traffic.unknown_loops:
        lines.append(
            f"    {traffic.unknown_loops} loop(s) of unknown length counted as if run once"
        )
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
        return [*lines, "  time         unknown: nothing is known of the speed of this device"]
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
        return ["  fits         unknown: nothing is known of the memory of this device"]
    if plan.fits:
        return ["  fits         yes"]
    return ["  fits         NO. What helps:", *(f"    - {line}" for line in remedies(plan))]


def remedies(plan: Plan) -> list[str]:
    """What to change when a plan does not fit, the cheapest first."""
    mesh, stage = plan.facts.mesh, f"--config.stages.{plan.stage_name}"
    lines = []
    state_share = plan.facts.state_bytes / plan.hbm if plan.hbm else 0
    if mesh["data"] > 1 and state_share > 0.1:
        lines.append(
            f"cut the state further: a larger --config.mesh.fsdp (now {mesh['fsdp']}; the state "
            f"takes {state_share:.0%} of a chip)"
        )
    if plan.facts.program == TRAIN:
        model, train = plan.stage.model, plan.stage.train
        if any(remat_of(model, level) != "full" for level in range(len(model.channels))):
            policies = ",".join(["'full'"] * len(model.channels))
            lines.append(
                f'compute activations again instead of keeping them: {stage}.model.remat="'
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
