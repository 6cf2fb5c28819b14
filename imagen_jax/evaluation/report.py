"""Measures the drawn pictures: the figures of `report.json`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config import DataConfig
from imagen_jax.data.open import load_source
from imagen_jax.evaluation import nearest, picture_statistics, super_resolution
from imagen_jax.evaluation.caption_accuracy import Score, accuracy_by_group
from imagen_jax.evaluation.drawing import Folder
from imagen_jax.evaluation.prompt_set import Prompt, PromptSet
from imagen_jax.evaluation.proportions import paired, share
from imagen_jax.evaluation.scorer import Scorer, scorer_of
from imagen_jax.stage import Stage
from imagen_jax.weights.artefact import StageWeights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of an evaluation.

    Attributes:
      root: its directory.
      prompts: one picture was drawn for each.
      repeats: further pictures of some of the prompts, for diversity.
      stages: the chain, in order.
      num_true: number of prompts, from the first, whose true pictures are measured and enlarged.
    """

    root: Path
    prompts: PromptSet
    repeats: tuple[Prompt, ...]
    stages: dict[str, Stage]
    num_true: int

    @property
    def generated(self) -> bool:
        """Whether the chain starts at a base stage, so that `drawn` has pictures."""
        return not next(iter(self.stages.values())).factor

    @property
    def with_truth(self) -> tuple[Prompt, ...]:
        """The prompts whose true pictures are measured."""
        return self.prompts.prompts[: self.num_true]

    def truth(self, size: int) -> Iterator[np.ndarray]:
        """The true pictures `[size, size, 3]` uint8 of `with_truth`."""
        return itertools.islice(self.prompts.true_pictures(size), self.num_true)

    def drawn(self, stage: str) -> Folder:
        """The pictures of the stage in the chain."""
        return Folder(self.root / "pictures" / stage)

    def from_truth(self, stage: str) -> Folder:
        """The pictures that the super-resolution stage made of `true_low_res`."""
        return Folder(self.root / "from_truth" / stage)

    def true_low_res(self, stage: str) -> Folder:
        """True pictures, reduced to the input size of the super-resolution stage."""
        return Folder(self.root / "true_low_res" / stage)


def make_report(
    pictures: Pictures, weights: Mapping[str, StageWeights], data: DataConfig
) -> dict[str, Any]:
    """Measures the pictures of every stage.

    Accuracy comes from the scorer of the data. Where the training pictures are a finite set, the
    report has the distances to the nearest of them. docs/evaluation.md explains each entry.

    Args:
      pictures: all of them drawn.
      weights: of each stage.
      data: the data that the stages were trained on.

    Returns:
      Plain JSON values.
    """
    scorer = scorer_of(data)
    notes = list(pictures.prompts.notes)
    prompts = pictures.prompts.prompts
    rows = [
        {"group": p.group, "number": p.number, "text": p.text, "seed": p.seed, "scores": {}}
        for p in prompts
    ]
    stages: dict[str, dict[str, Any]] = {}
    for name, stage in pictures.stages.items():
        too_small = scorer is not None and stage.config.resolution < scorer.min_resolution
        judge = None if too_small else scorer
        entry = {
            "resolution": stage.config.resolution,
            "trained_on_images": weights[name].images_seen,
            "parameters": weights[name].num_parameters,
            "true_pictures": _true_pictures(pictures, stage.config.resolution, judge),
        }
        scores = None
        if pictures.generated:
            folder = pictures.drawn(name)
            entry["pictures"] = {
                "count": len(prompts),
                **picture_statistics.mean_statistics(folder.read_all(prompts)),
                "diversity": _diversity(pictures, folder),
            }
            if judge is not None:
                scores = judge.score(folder.read_all(prompts), prompts)
                entry["accuracy"] = accuracy_by_group(scores, prompts, judge.parts)
                for row, score in zip(rows, scores, strict=True):
                    row["scores"][name] = _score_entry(score)
        if stage.factor:
            entry["super_resolution"] = _super_resolution(pictures, name, scores, judge)
        stages[name] = entry
        if too_small:
            notes.append(
                f"{name}: pictures of {stage.config.resolution} pixels are too small to be read "
                f"(at least {scorer.min_resolution}), so nothing says whether they obey their "
                f"captions."
            )
    if scorer is not None:
        notes += scorer.notes
    else:
        notes.append(
            f"Whether pictures obey their captions is not scored: there is no scorer for "
            f"{data.source}."
        )
    if not pictures.generated:
        notes.append("The base stage was not run: only true pictures were enlarged.")
    report = {"notes": notes, "stages": stages, "prompts": rows}
    if pictures.generated and not load_source(data, "train", nearest.SIDE).endless:
        report["nearest"] = _nearest(pictures, data, rows)
    return report


def _score_entry(score: Score) -> dict[str, Any]:
    return {"accepted": score.accepted, "failed": score.failed, "seen": score.seen}


def _accepted(scores: list[Score]) -> dict[str, Any]:
    return dataclasses.asdict(share([score.accepted for score in scores]))


def _true_pictures(pictures: Pictures, size: int, judge: Scorer | None) -> dict[str, Any]:
    """The figures of the true pictures: those of a perfect cascade."""
    entry: dict[str, Any] = {
        "count": pictures.num_true,
        **picture_statistics.mean_statistics(pictures.truth(size)),
    }
    if judge is not None:
        entry["accepted"] = _accepted(judge.score(pictures.truth(size), pictures.with_truth))
    return entry


def _diversity(pictures: Pictures, folder: Folder) -> float:
    """Mean diversity over the prompts that were drawn several times."""
    by_prompt: dict[tuple[str, int], list[Prompt]] = {}
    for prompt in pictures.repeats:
        by_prompt.setdefault((prompt.group, prompt.number), []).append(prompt)
    first = {(prompt.group, prompt.number): prompt for prompt in pictures.prompts.prompts}
    return float(
        np.mean(
            [
                picture_statistics.diversity(np.stack(list(folder.read_all([first[key], *others]))))
                for key, others in by_prompt.items()
            ]
        )
    )


def _super_resolution(
    pictures: Pictures, name: str, scores: list[Score] | None, judge: Scorer | None
) -> dict[str, Any]:
    """Figures of a stage on true low-resolution pictures and on those of the stage before it."""
    stage = pictures.stages[name]
    prompts = pictures.with_truth
    outputs, low_res = pictures.from_truth(name), pictures.true_low_res(name)
    measured, psnr, bilinear = [], [], []
    for prompt, truth in zip(prompts, pictures.truth(stage.config.resolution), strict=True):
        output, small = outputs.read(prompt), low_res.read(prompt)
        measured.append(super_resolution.fidelity(output, small))
        psnr.append(super_resolution.psnr(output, truth))
        enlarged = super_resolution.enlarge(small, stage.config.resolution)
        bilinear.append(super_resolution.psnr(enlarged, truth))
    from_truth = {
        **super_resolution.summarize(measured),
        "psnr": float(np.mean(psnr)),
        "psnr_of_bilinear": float(np.mean(bilinear)),
    }
    true_scores = None if judge is None else judge.score(outputs.read_all(prompts), prompts)
    if true_scores:
        from_truth["accepted"] = _accepted(true_scores)
    entry = {"from_truth": from_truth}
    if pictures.generated:
        names = list(pictures.stages)
        before = pictures.drawn(names[names.index(name) - 1])
        drawn = pictures.drawn(name)
        entry["from_generated"] = super_resolution.summarize(
            [super_resolution.fidelity(drawn.read(p), before.read(p)) for p in prompts]
        )
        if scores and true_scores:
            same = scores[: len(prompts)]
            entry["from_generated"]["accepted"] = _accepted(same)
            entry["generated_against_true"] = dataclasses.asdict(
                paired([s.accepted for s in true_scores], [s.accepted for s in same])
            )
    return entry


def _nearest(pictures: Pictures, data: DataConfig, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds each picture's nearest training picture to its row; returns medians by group."""
    training = nearest.load_training_pictures(data)
    stage = list(pictures.stages)[-1]
    folder = pictures.drawn(stage)
    groups: dict[str, dict[str, list[float]]] = {}
    truth = itertools.chain(
        pictures.truth(pictures.stages[stage].config.resolution), itertools.repeat(None)
    )
    for row, prompt, true_picture in zip(rows, pictures.prompts.prompts, truth, strict=False):
        found = nearest.nearest(folder.read(prompt), training)
        row["nearest"] = dataclasses.asdict(found)
        group = groups.setdefault(prompt.group, {"drawn": [], "true": []})
        group["drawn"].append(found.distance)
        if true_picture is not None:
            group["true"].append(nearest.nearest(true_picture, training).distance)
    return {
        "stage": stage,
        "side": nearest.SIDE,
        "looked_through": len(training.items),
        "training_pictures": training.total,
        "median_distance": {
            name: {kind: float(np.median(values)) for kind, values in group.items() if values}
            for name, group in groups.items()
        },
    }
