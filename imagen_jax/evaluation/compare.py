"""Compares two reports over the same prompts and seeds, prompt by prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.evaluation.caption_accuracy import ALL
from imagen_jax.evaluation.proportions import Paired, paired


def read_report(path: str) -> dict[str, Any]:
    """Reads a `report.json`. Raises UserError if the file cannot be read or is no report."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        report["stages"], report["prompts"]
    except OSError as error:
        raise UserError(f"--compare={path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--compare={path} is not a report.json of an evaluation") from error
    return report


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Paired]]:
    """The paired difference for each stage that both reports score and each group (and "all").

    Prompts that only the longer report has are left out.

    Raises:
      UserError: the reports have no scored stage or no prompt in common.
    """
    stages = [
        name
        for name in after["stages"]
        if all("accuracy" in report["stages"].get(name, {}) for report in (before, after))
    ]
    if not stages:
        raise UserError("the two reports have no scored stage in common")
    old = {_key(row): row["scores"] for row in before["prompts"]}
    common = [(row, old[_key(row)]) for row in after["prompts"] if _key(row) in old]
    if not common:
        raise UserError("the two reports have no prompt with its seed in common")
    differences: dict[str, dict[str, Paired]] = {}
    for stage in stages:
        pairs: dict[str, list[tuple[bool, bool]]] = {}
        for row, old_scores in common:
            pair = (old_scores[stage]["accepted"], row["scores"][stage]["accepted"])
            pairs.setdefault(row["group"], []).append(pair)
        pairs[ALL] = [pair for group in pairs.values() for pair in group]
        differences[stage] = {
            group: paired(*map(list, zip(*members, strict=True)))
            for group, members in pairs.items()
        }
    return differences


def text_comparison(differences: Mapping[str, Mapping[str, Paired]]) -> str:
    """The differences for a terminal."""
    lines = ["Against the other report, prompt by prompt (p: McNemar's exact test):"]
    for stage, groups in differences.items():
        for group, d in groups.items():
            lines.append(
                f"{stage}, {group}: {100 * d.difference:+.1f} points over {d.total} prompts "
                f"({d.gained} gained, {d.lost} lost, p = {d.p:.2g})"
            )
    return "\n".join(lines)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["group"], row["number"], row["text"], row["seed"]
