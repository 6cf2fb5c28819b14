"""Converts settings that earlier versions of the package wrote into artefacts and checkpoints.

Stored settings are complete: a setting that is missing did not exist in the version that wrote
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Version 1 kept the settings of all kinds of a choice side by side. For each group of a stage and
# each choice in it: by kind, the names of its settings in version 1 and today.
_CHOICES = {
    "diffusion": {
        "schedule": {"shifted_cosine": {"shift_resolution": "reference"}},
        "train_levels": {"normal": {"logsnr_mean": "mean", "logsnr_std": "std"}},
        "loss_weighting": {
            "min_snr": {"min_snr_gamma": "gamma", "min_snr_power": "power"},
            "sigmoid": {"sigmoid_bias": "bias"},
        },
    },
    "train": {
        "optimizer": {
            "adam": {"adam_b2": "b2"},
            "adafactor": {"adafactor_parameter_scale": "parameter_scale"},
            "muon": {"muon_learning_rate": "learning_rate", "adam_b2": "adam_b2"},
        },
    },
    "sample": {
        "sampler": {"ddim": {"eta": "eta"}, "ancestral": {"gamma": "gamma"}},
        "threshold": {"dynamic": {"percentile": "percentile", "threshold_cap": "cap"}},
    },
}
# Settings that version 1 stored for a "unet" and never read.
_UNUSED_BY_UNET = ("strides", "stem_channels")


def upgrade(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a cascade in today's names; current ones are returned unchanged."""
    stages = values.get("stages")
    if not isinstance(stages, Mapping):
        return values
    if any(map(_is_version_1, stages.values())):
        stages = {name: _from_version_1(stage) for name, stage in stages.items()}
    if any(map(_is_version_2, stages.values())):
        stages = {name: _from_version_2(stage) for name, stage in stages.items()}
    return {**values, "stages": stages}


def _is_version_1(stage: Any) -> bool:
    sample = stage.get("sample") if isinstance(stage, Mapping) else None
    return (
        isinstance(sample, Mapping)
        and isinstance(sample.get("sampler"), str)
        and "guidance_weight" in sample
    )


def _is_version_2(stage: Any) -> bool:
    model = stage.get("model") if isinstance(stage, Mapping) else None
    return isinstance(model, Mapping) and "shared_key_bias" not in model


def _from_version_2(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Version 2 had one kind of input skip, and biases in all keys."""
    model = {**stage["model"], "shared_key_bias": True}
    model["input_skip"] = "add" if model.get("input_skip") else "none"
    return {**stage, "model": model}


def _from_version_1(stage: Mapping[str, Any]) -> dict[str, Any]:
    upgraded = {**stage}
    for group, choices in _CHOICES.items():
        upgraded[group] = _nest(stage[group], choices)
    sample = upgraded["sample"]
    sample["guidance"] = {"weight": sample.pop("guidance_weight")}
    if stage["model"]["kind"] == "unet":
        model = stage["model"].items()
        upgraded["model"] = {name: value for name, value in model if name not in _UNUSED_BY_UNET}
    return upgraded


def _nest(
    group: Mapping[str, Any], choices: Mapping[str, Mapping[str, Mapping[str, str]]]
) -> dict[str, Any]:
    """The group with each choice as a group of its own, which has a `kind`."""
    moved = {old for kinds in choices.values() for names in kinds.values() for old in names}
    nested = {name: value for name, value in group.items() if name not in moved}
    for choice, kinds in choices.items():
        names = kinds.get(group[choice], {})
        # Early versions lack some settings: these have their defaults.
        settings = {new: group[old] for old, new in names.items() if old in group}
        nested[choice] = {"kind": group[choice], **settings}
    return nested
