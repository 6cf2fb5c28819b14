"""The flags that change the sampling settings of stages, for sample and evaluate.

A value is for all stages (`--num_steps=50`) or by stage (`--num_steps=base=50,sr64=20`).
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl.flags import DEFINE, ArgumentParser, FlagValues

from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig, SampleConfig


@dataclasses.dataclass(frozen=True)
class SamplingFlag:
    """A flag and the setting of `SampleConfig` that it changes.

    Attributes:
      field: of `SampleConfig`.
      inner: field of the dataclass in `field`, or its path with dots; "" for `field` itself, which
        is then a number, or a choice that is replaced by another kind.
      type: of the value: float, int, str for a kind, tuple for LOW:HIGH.
      help: for `--help`.
    """

    field: str
    inner: str
    type: type
    help: str


class LogSNRs(tuple):
    """The type of `--logsnrs`: numbers with colons between them."""

    def __new__(cls, text: str) -> LogSNRs:
        return super().__new__(cls, (float(part) for part in text.split(":")))


# Kinds come first: --sampler=ddim --eta=0.5 sets the eta of the new sampler.
SAMPLING_FLAGS = {
    "sampler": SamplingFlag(
        "sampler", "", str, "Sampler: ddim, ancestral, dpmpp, sde_dpmpp, heun, euler or unipc."
    ),
    "grid": SamplingFlag("grid", "", str, "Noise levels: uniform, logsnr or karras."),
    "logsnrs": SamplingFlag(
        "grid", "", LogSNRs, "The log-SNRs of the steps, rising, as -8:-4:0:4 (an explicit grid)."
    ),
    "threshold": SamplingFlag("threshold", "", str, "Thresholding: none, static or dynamic."),
    "num_steps": SamplingFlag("num_steps", "", int, "Steps per picture."),
    "guidance_weight": SamplingFlag(
        "guidance", "weight", float, "Guidance weight w. 1 is no guidance."
    ),
    "guidance_schedule": SamplingFlag(
        "guidance",
        "schedule",
        str,
        "Weight over the steps: constant, linear, cosine or oscillating.",
    ),
    "guidance_constant": SamplingFlag(
        "guidance",
        "schedule.constant",
        float,
        "Share of the steps before an oscillating weight oscillates, from 0 to 1.",
    ),
    "guidance_interval": SamplingFlag(
        "guidance",
        "interval",
        tuple,
        "LOW:HIGH, the log-SNRs between which guidance acts. -20:20 are all.",
    ),
    "guidance_rescale": SamplingFlag(
        "guidance",
        "rescale",
        float,
        "Share, from 0 to 1, to which pictures keep their contrast of without guidance.",
    ),
    "guidance_parallel": SamplingFlag(
        "guidance",
        "parallel",
        float,
        "Factor, from 0 to 1, of the part of guidance along the picture itself (APG). 1 is all.",
    ),
    "guidance_max_norm": SamplingFlag(
        "guidance", "max_norm", float, "Longest step of guidance, before its weight. 0 for any."
    ),
    "guide_weight": SamplingFlag(
        "guidance", "guide_weight", float, "Weight of autoguidance, see --guide_weights of sample."
    ),
    "eta": SamplingFlag("sampler", "eta", float, "Noise of ddim and sde_dpmpp, from 0 to 1."),
    "order": SamplingFlag("sampler", "order", int, "Order of dpmpp and unipc: 1, 2 or 3."),
    "variant": SamplingFlag("sampler", "variant", str, "Of dpmpp: multistep or singlestep."),
    "solver_type": SamplingFlag("sampler", "solver_type", str, "Of unipc: bh1 or bh2."),
    "s_churn": SamplingFlag("sampler", "s_churn", float, "Noise of heun and euler; 0 for none."),
    "s_min": SamplingFlag("sampler", "s_min", float, "Lowest sigma with churn."),
    "s_max": SamplingFlag("sampler", "s_max", float, "Highest sigma with churn."),
    "s_noise": SamplingFlag("sampler", "s_noise", float, "Factor of the noise of churn."),
    "rho": SamplingFlag("grid", "rho", float, "Of the karras grid; more is finer at low noise."),
    "sigma_max": SamplingFlag("grid", "sigma_max", float, "First sigma; 0 for the schedule's."),
    "sigma_min": SamplingFlag("grid", "sigma_min", float, "Last sigma; 0 for the schedule's."),
    "gamma": SamplingFlag("sampler", "gamma", float, "Variance of ancestral, from 0 to 1."),
    "percentile": SamplingFlag(
        "threshold", "percentile", float, "Percentile of dynamic thresholding, in percent."
    ),
    "threshold_cap": SamplingFlag(
        "threshold", "cap", float, "Upper bound of the dynamic threshold. 0 for none."
    ),
    "aug_level": SamplingFlag(
        "aug_level", "", float, "Noise on the low-resolution picture, from 0 to 1."
    ),
}


def define_sampling_flags(flags: FlagValues) -> None:
    """Defines `SAMPLING_FLAGS`."""
    for name, flag in SAMPLING_FLAGS.items():
        DEFINE(_ValueParser(name), name, None, flag.help, flag_values=flags)


class _ValueParser(ArgumentParser):
    """Refuses what is no value of the flag, whatever the stages are; the text stays as it is."""

    def __init__(self, name: str):
        self._name = name

    def parse(self, argument: str) -> str:
        parse_value(self._name, argument, SAMPLING_FLAGS[self._name].type)
        return argument

    def flag_type(self) -> str:
        return "string"


def sampling_flag_values(flags: FlagValues) -> dict[str, str | None]:
    """The values of `SAMPLING_FLAGS` on the command line, None where not given."""
    return {name: flags[name].value for name in SAMPLING_FLAGS}


def override(
    given: Mapping[str, str | None], config: CascadeConfig, settings: Mapping[str, SampleConfig]
) -> dict[str, SampleConfig]:
    """Settings for every stage: from the flags, else from `settings`, else from `config`.

    Args:
      given: the values of `SAMPLING_FLAGS` on the command line, by flag; None where not given.
      config: of the weights.
      settings: by stage.

    Raises:
      UserError: an unknown stage, a value of the wrong type or out of range, or a setting that the
        chosen sampler or threshold does not have.
    """
    from imagen_jax.config import SampleConfig

    # Settings limit each other, so they are built when all flags are known.
    merged = {
        name: types.SimpleNamespace(**vars(settings.get(name, stage.sample)))
        for name, stage in config.ordered_stages().items()
    }
    for name, flag in SAMPLING_FLAGS.items():
        text = given.get(name)
        if text is None:
            continue
        values = parse_per_stage(name, text, flag.type, list(merged))
        if "=" not in text:
            values = {stage: v for stage, v in values.items() if _applies(flag, merged[stage])}
        if not values:
            raise UserError(
                f"--{name}={text}: no stage has this setting, "
                + ", ".join(f"{stage} has {_describe(flag, s)}" for stage, s in merged.items())
            )
        for stage, value in values.items():
            try:
                merged[stage] = _changed(merged[stage], flag, value)
            except UserError as error:
                raise UserError(f"--{name}={text}: stage {stage!r}: {error}") from error
    built = {}
    for stage, fields in merged.items():
        try:
            built[stage] = SampleConfig(**vars(fields))
        except UserError as error:
            raise UserError(f"stage {stage!r}: {error}") from error
    return built


def check_sampling_flags(given: Mapping[str, str | None]) -> None:
    """Refuses values that are out of range whatever the weights are, before those are read.

    Args:
      given: see `override`.

    Raises:
      UserError: a value out of range, or an unknown kind.
    """
    from imagen_jax.config import SampleConfig
    from imagen_jax.diffusion.grids import GRIDS, ExplicitGrid
    from imagen_jax.diffusion.guidance import WEIGHT_SCHEDULES, Guidance
    from imagen_jax.diffusion.samplers import SAMPLERS
    from imagen_jax.diffusion.thresholding import THRESHOLDS

    everything = [
        SampleConfig(
            sampler=sampler(), threshold=threshold(), guidance=Guidance(schedule=schedule())
        )
        for sampler in SAMPLERS
        for threshold in THRESHOLDS
        for schedule in WEIGHT_SCHEDULES
    ]
    everything += [SampleConfig(grid=grid()) for grid in GRIDS if grid is not ExplicitGrid]
    for name, flag in SAMPLING_FLAGS.items():
        text = given.get(name)
        if text is None:
            continue
        for value in parse_value(name, text, flag.type).values():
            for settings in everything if flag.inner else [SampleConfig()]:
                if _applies(flag, settings):
                    try:
                        SampleConfig(**vars(_changed(settings, flag, value)))
                    except UserError as error:
                        raise UserError(f"--{name}={text}: {error}") from error


def parse_per_stage(flag: str, text: str, kind: type, stages: Sequence[str]) -> dict[str, Any]:
    """ "5" to {every stage: 5}, "base=5,sr64=2" to {"base": 5, "sr64": 2}. Raises UserError."""
    values = parse_value(flag, text, kind)
    if None in values:
        return dict.fromkeys(stages, values[None])
    for name in values:
        if name not in stages:
            raise UserError(
                f"--{flag}={text}: there is no stage {name!r}; the stages are {', '.join(stages)}"
            )
    return values


def parse_value(flag: str, text: str, kind: type) -> dict[str | None, Any]:
    """ "5" to {None: 5}, "base=5,sr64=2" to {"base": 5, "sr64": 2}. Raises UserError."""
    if "=" not in text:
        return {None: _convert(flag, text.strip(), kind)}
    values: dict[str | None, Any] = {}
    for item in text.split(","):
        name, sign, value = (part.strip() for part in item.partition("="))
        if not sign:
            raise UserError(
                f"--{flag}={text}: {item!r} is not STAGE=VALUE; give one value for all stages, or "
                "STAGE=VALUE,STAGE=VALUE"
            )
        if name in values:
            raise UserError(f"--{flag}={text}: stage {name!r} is given twice")
        values[name] = _convert(flag, value, kind)
    return values


def _convert(flag: str, text: str, kind: type) -> Any:
    what = {
        float: "a number",
        int: "a whole number",
        str: "a name",
        tuple: "LOW:HIGH, such as -3:2",
        LogSNRs: "-8:-4:0:4",
    }[kind]
    try:
        value = _pair(text) if kind is tuple else kind(text)
    except ValueError as error:
        raise UserError(f"--{flag}: {text!r} is not {what}") from error
    if value == "":
        raise UserError(f"--{flag}: {text!r} is not {what}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"--{flag}={text} must be finite")
    return value


def _pair(text: str) -> tuple[float, float]:
    low, high = text.split(":")
    return float(low), float(high)


def _applies(flag: SamplingFlag, settings: SampleConfig) -> bool:
    _, choice, last = _owner(flag, settings)
    return hasattr(choice, last)


def _describe(flag: SamplingFlag, settings: SampleConfig) -> str:
    name, choice, _ = _owner(flag, settings)
    return f"the {name} {choice.kind!r}"


def _owner(flag: SamplingFlag, settings: SampleConfig) -> tuple[str, Any, str]:
    """What has the setting, its name, and the name of the setting."""
    name, owner, last = "settings", settings, flag.field
    for inner in filter(None, flag.inner.split(".")):
        name, owner, last = last, getattr(owner, last), inner
    return name, owner, last


def _changed(settings: Any, flag: SamplingFlag, value: Any) -> types.SimpleNamespace:
    """The fields of a `SampleConfig` with one changed."""
    fields = dict(vars(settings))
    if not _applies(flag, settings):
        _, _, last = _owner(flag, settings)
        raise UserError(f"{_describe(flag, settings)} has no {last}")
    if flag.type is LogSNRs:
        from imagen_jax.diffusion.grids import ExplicitGrid

        value = ExplicitGrid(tuple(value))
        fields["num_steps"] = len(value.logsnrs)
    else:
        path = [part for part in flag.inner.split(".") if part]
        value = _replaced(getattr(settings, flag.field), flag.field, path, value)
    return types.SimpleNamespace(**{**fields, flag.field: value})


def _replaced(current: Any, name: str, path: Sequence[str], value: Any) -> Any:
    """What `name` becomes if the setting at `path` in it, or itself, gets a value."""
    if path:
        first, *rest = path
        inner = _replaced(getattr(current, first), first, rest, value)
        return dataclasses.replace(current, **{first: inner})
    is_choice = isinstance(value, str) and not isinstance(current, str)
    return _of_kind(name, value, current) if is_choice else value


def _of_kind(field: str, kind: str, current: Any) -> Any:
    """A choice of another kind, with its defaults; of the same kind, the current one."""
    from imagen_jax.config import choice_of_kind
    from imagen_jax.diffusion.grids import GRIDS
    from imagen_jax.diffusion.guidance import WEIGHT_SCHEDULES
    from imagen_jax.diffusion.samplers import SAMPLERS
    from imagen_jax.diffusion.thresholding import THRESHOLDS

    choices = {
        "sampler": SAMPLERS,
        "grid": GRIDS,
        "threshold": THRESHOLDS,
        "schedule": WEIGHT_SCHEDULES,
    }[field]
    cls = choice_of_kind(choices, kind, field)
    return current if isinstance(current, cls) else cls()
