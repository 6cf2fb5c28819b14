"""The figures of a report as tables of strings, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagen_jax.evaluation.caption_accuracy import ALL


def percent(value: Mapping[str, Any]) -> str:
    """A share with its interval: "93.5 % [89.2, 96.2]"."""
    return f"{value['share']:.1%} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def accuracy_table(accuracy: Mapping[str, Any]) -> list[list[str]]:
    """Rows of strings, the heading first: accepted with its interval, then each part."""
    parts = list(accuracy[ALL]["parts"])
    table = [["prompts", "number", "accepted [95 %]", *parts]]
    for name, group in accuracy.items():
        shares = [group["parts"].get(part) for part in parts]
        table.append(
            [
                name,
                str(group["accepted"]["total"]),
                percent(group["accepted"]),
                *(f"{s['share']:.1%}" if s else "" for s in shares),
            ]
        )
    return table


def statistics_table(stages: Mapping[str, Any]) -> list[list[str]]:
    """Rows of strings, the heading first: colour, clipping and diversity of each stage."""
    table = [["pictures", "number", "saturation", "colourfulness", "clipped pixels", "diversity"]]
    for name, stage in stages.items():
        for what, key in (("drawn", "pictures"), ("true", "true_pictures")):
            if key in stage:
                s = stage[key]
                diversity = f"{s['diversity']:.1f}" if "diversity" in s else ""
                table.append(
                    [
                        f"{name}, {what}",
                        str(s["count"]),
                        f"{s['saturation']:.3f}",
                        f"{s['colourfulness']:.1f}",
                        f"{s['clipped_share']:.1%}",
                        diversity,
                    ]
                )
    return table


def denoising_table(stages: Mapping[str, Any]) -> list[list[str]]:
    """Rows of strings, the heading first: the error of x_hat by log-SNR of each stage.

    The heading alone for the report of an earlier version, which has no such error.
    """
    errors = {name: s["denoising_error"] for name, s in stages.items() if "denoising_error" in s}
    levels = [level for error in errors.values() for level in error]
    table = [["error of x_hat at log-SNR", *dict.fromkeys(levels)]]
    for name, error in errors.items():
        table.append([name, *(f"{value:.4f}" for value in error.values())])
    return table


def super_resolution_table(stages: Mapping[str, Any]) -> list[list[str]]:
    """Rows of strings, the heading first; the heading alone without super-resolution stages."""
    table = [
        [
            "enlarged",
            "number",
            "PSNR",
            "bilinear",
            "consistency",
            "drift r, g, b",
            "accepted [95 %]",
        ]
    ]
    for name, stage in stages.items():
        for what, key in (("true", "from_truth"), ("drawn", "from_generated")):
            s = stage.get("super_resolution", {}).get(key)
            if s is None:
                continue
            table.append(
                [
                    f"{name}, from {what}",
                    str(s["pictures"]),
                    f"{s['psnr']:.2f} dB" if "psnr" in s else "",
                    f"{s['psnr_of_bilinear']:.2f} dB" if "psnr_of_bilinear" in s else "",
                    f"{s['consistency_psnr']:.2f} dB",
                    ", ".join(f"{value:+.2f}" for value in s["drift"]),
                    percent(s["accepted"]) if "accepted" in s else "",
                ]
            )
    return table


def nearest_table(found: Mapping[str, Any]) -> list[list[str]]:
    """Rows of strings, the heading first: median distances to the nearest training picture."""
    table = [["prompts", "drawn", "true"]]
    for name, group in found["median_distance"].items():
        table.append([name, *(f"{group[k]:.1f}" if k in group else "" for k in ("drawn", "true"))])
    return table


def text_report(report: Mapping[str, Any]) -> str:
    """The tables of a report for a terminal."""
    blocks = []
    for name, stage in report["stages"].items():
        if "accuracy" in stage:
            blocks += [f"{name}: {stage['resolution']}x{stage['resolution']}"]
            blocks += [_columns(accuracy_table(stage["accuracy"]))]
    blocks.append(_columns(statistics_table(report["stages"])))
    for table in (denoising_table(report["stages"]), super_resolution_table(report["stages"])):
        if len(table) > 1:
            blocks.append(_columns(table))
    if "nearest" in report:
        blocks.append("Median distance to the nearest training picture:")
        blocks.append(_columns(nearest_table(report["nearest"])))
    blocks += [f"Note: {note}" for note in report["notes"]]
    return "\n\n".join(blocks)


def _columns(table: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
