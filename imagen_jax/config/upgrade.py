"""Converts settings that earlier versions of the package wrote into artefacts and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def upgrade(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a cascade in today's names; current ones are returned unchanged."""
    stages = values.get("stages")
    if not isinstance(stages, Mapping) or not any(map(_is_flat, stages.values())):
        return values
    return {**values, "stages": {name: _nest(stage) for name, stage in stages.items()}}


def _is_flat(stage: Any) -> bool:
    """Version 1 kept the settings of all samplers, thresholds, ... side by side."""
    sample = stage.get("sample") if isinstance(stage, Mapping) else None
    return isinstance(sample, Mapping) and "guidance_weight" in sample


def _nest(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 to 2: each choice becomes a group with its own settings."""
    model, diffusion = dict(stage["model"]), dict(stage["diffusion"])
    train, sample = dict(stage["train"]), dict(stage["sample"])

    if model["kind"] == "unet":
        # It was stored and never read.
        model.pop("strides")
        model.pop("stem_channels")

    settings = {
        "shifted_cosine": {"reference": diffusion.pop("shift_resolution")},
        "normal": {"mean": diffusion.pop("logsnr_mean"), "std": diffusion.pop("logsnr_std")},
        "min_snr": {
            "gamma": diffusion.pop("min_snr_gamma"),
            "power": diffusion.pop("min_snr_power"),
        },
        "sigmoid": {"bias": diffusion.pop("sigmoid_bias")},
    }
    for name in ("schedule", "train_levels", "loss_weighting"):
        diffusion[name] = _choice(diffusion[name], settings)

    adam_b2 = train.pop("adam_b2")
    train["optimizer"] = _choice(
        train["optimizer"],
        {
            "adam": {"b2": adam_b2},
            "adafactor": {"parameter_scale": train.pop("adafactor_parameter_scale")},
            "muon": {"learning_rate": train.pop("muon_learning_rate"), "adam_b2": adam_b2},
        },
    )

    sample["sampler"] = _choice(
        sample["sampler"],
        {"ddim": {"eta": sample.pop("eta")}, "ancestral": {"gamma": sample.pop("gamma")}},
    )
    sample["guidance"] = {"weight": sample.pop("guidance_weight")}
    sample["threshold"] = _choice(
        sample["threshold"],
        {"dynamic": {"percentile": sample.pop("percentile"), "cap": sample.pop("threshold_cap")}},
    )
    return {**stage, "model": model, "diffusion": diffusion, "train": train, "sample": sample}


def _choice(kind: str, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {"kind": kind, **settings.get(kind, {})}
