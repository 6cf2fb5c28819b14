"""An evaluation from weights to report: draws the missing pictures, measures them, writes.

    report = evaluate(cascade, data, prompts, request, Path("outputs/evaluation"))

The directory then holds

    settings.json            the settings that the pictures were drawn with
    pictures/<stage>/        the cascade's pictures, one PNG for each prompt
    true_low_res/<stage>/    true low-resolution pictures, the input of a super-resolution stage
    from_truth/<stage>/      what the super-resolution stage made of them
    report.json, report.html

`report.json` depends only on the settings, the weights and the kind of device. It records no time
and no path, so an interrupted and resumed evaluation gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from imagen_jax.config import DataConfig, SampleConfig, to_json_dict
from imagen_jax.errors import UserError
from imagen_jax.evaluation import super_resolution
from imagen_jax.evaluation.denoising_error import denoising_error
from imagen_jax.evaluation.drawing import (
    Folder,
    Job,
    claim_directory,
    draw,
)
from imagen_jax.evaluation.html import html_report
from imagen_jax.evaluation.prompt_set import Prompt, PromptSet
from imagen_jax.evaluation.report import Pictures, make_report
from imagen_jax.files import write_atomically, write_json
from imagen_jax.progress import progress_bar
from imagen_jax.sampling import Cascade
from imagen_jax.sampling.request import picture_cost
from imagen_jax.stage import Stage

FORMAT_VERSION = 1
REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
# Diversity is measured on the first prompts, over several pictures of each.
DIVERSITY_PROMPTS = 8
DIVERSITY_PICTURES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to evaluate.

    Attributes:
      sampling: settings of each stage of the chain, in order. A chain that starts with a
        super-resolution stage is measured on true low-resolution pictures alone.
      num_true: number of prompts, from the first, whose true pictures are measured and enlarged.
      batch_size: pictures drawn at once; None uses each stage's default.
    """

    sampling: dict[str, SampleConfig]
    num_true: int = 200
    batch_size: int | None = None


def evaluate(
    cascade: Cascade, data: DataConfig, prompts: PromptSet, request: Request, out: Path
) -> dict[str, Any]:
    """Draws the pictures, measures them and writes the report; resumes an interrupted evaluation.

    Args:
      cascade: the weights.
      data: the data that they were trained on.
      prompts: see `load_prompts`.
      request: what to evaluate.
      out: the directory: new, or of the same evaluation.

    Returns:
      The content of `report.json`.

    Raises:
      UserError: a setting is out of range, `out` cannot be used, or pictures are not finite.
    """
    for name, value in (("num_true", request.num_true), ("batch_size", request.batch_size)):
        if value is not None and value < 1:
            raise UserError(f"--{name}={value} must be at least 1")
    pictures = _pictures(cascade, prompts, request, out)
    settings = _settings(cascade, data, pictures, request)
    jobs = _jobs(cascade, pictures, request)
    claim_directory(out, settings)
    _write_true_low_res(pictures)
    _draw(cascade, jobs)
    start = time.perf_counter()
    report = {"settings": settings, **make_report(pictures, cascade.artefact.stages, data)}
    for name, entry in report["stages"].items():
        entry["denoising_error"] = _denoising_error(cascade, pictures, request, name)
    write_json(out / REPORT_FILE, report)
    page = html_report(report, pictures, data)
    write_atomically(epath.Path(out / PAGE_FILE), page.encode("utf-8"))
    print(f"measured in {time.perf_counter() - start:.0f} s")
    return report


def _denoising_error(
    cascade: Cascade, pictures: Pictures, request: Request, name: str
) -> dict[str, float]:
    """Of the true pictures of `num_true` prompts, see `denoising_error`."""
    stage = cascade.stages[name]
    text = cascade.encode([prompt.text for prompt in pictures.with_truth])
    images = np.stack(list(pictures.truth(stage.config.resolution)))
    batch_size = request.batch_size or cascade.default_batch_size(name)
    return denoising_error(stage, cascade.artefact.stages[name].params, text, images, batch_size)


def _pictures(cascade: Cascade, prompts: PromptSet, request: Request, out: Path) -> Pictures:
    stages = {name: cascade.stages[name] for name in request.sampling}
    first: Stage = next(iter(stages.values()))
    repeats: tuple[Prompt, ...] = ()
    if not first.factor:
        repeats = tuple(
            prompt.repeated(repeat)
            for prompt in prompts.prompts[:DIVERSITY_PROMPTS]
            for repeat in range(1, DIVERSITY_PICTURES)
        )
    return Pictures(
        root=out,
        prompts=prompts,
        repeats=repeats,
        stages=stages,
        num_true=min(request.num_true, len(prompts.prompts)),
    )


def _settings(
    cascade: Cascade, data: DataConfig, pictures: Pictures, request: Request
) -> dict[str, Any]:
    """Everything that decides the pictures, as plain JSON values."""
    import jax

    lines = "\n".join(f"{p.name} {p.seed} {p.text}" for p in pictures.prompts.prompts)
    return {
        "format_version": FORMAT_VERSION,
        "cascade": cascade.config.name,
        "data": {"source": data.source, "path": data.path},
        "num_prompts": len(pictures.prompts.prompts),
        "num_true": pictures.num_true,
        "prompts_sha256": hashlib.sha256(lines.encode("utf-8", "replace")).hexdigest(),
        "text_encoder": cascade.artefact.encoder_identity,
        "stages": {
            name: {
                "weights_sha256": cascade.artefact.stages[name].sha256,
                "batch_size": request.batch_size or cascade.default_batch_size(name),
                "sampling": to_json_dict(request.sampling[name]),
            }
            for name in pictures.stages
        },
        # Other devices and versions round sums differently.
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def _jobs(cascade: Cascade, pictures: Pictures, request: Request) -> dict[str, Job]:
    jobs = {}
    previous: Folder | None = None
    for name, stage in pictures.stages.items():

        def job(
            prompts: tuple[Prompt, ...],
            folder: Folder,
            low_res: Folder | None,
            name: str = name,
            stage: Stage = stage,
        ) -> Job:
            return Job(
                stage=name,
                prompts=prompts,
                folder=folder,
                low_res=low_res,
                sampling=request.sampling[name],
                batch_size=request.batch_size or cascade.default_batch_size(name),
                cost=picture_cost(request.sampling[name], (stage.config.resolution,) * 2),
            )

        if pictures.generated:
            all_prompts = pictures.prompts.prompts + pictures.repeats
            jobs[name] = job(all_prompts, pictures.drawn(name), previous)
            previous = pictures.drawn(name)
        if stage.factor:
            low_res = pictures.true_low_res(name)
            jobs[f"{name} from true pictures"] = job(
                pictures.with_truth, pictures.from_truth(name), low_res
            )
    return jobs


def _write_true_low_res(pictures: Pictures) -> None:
    """Writes the reduced true pictures of each super-resolution stage that are not there yet."""
    for name, stage in pictures.stages.items():
        if not stage.factor:
            continue
        folder = pictures.true_low_res(name)
        if all(folder.file(prompt).exists() for prompt in pictures.with_truth):
            continue
        folder.path.mkdir(parents=True, exist_ok=True)
        truth = pictures.truth(stage.config.resolution)
        for prompt, picture in zip(pictures.with_truth, truth, strict=True):
            folder.write(prompt, super_resolution.reduce(picture, stage.config.low_resolution))


def _draw(cascade: Cascade, jobs: dict[str, Job]) -> None:
    """Draws with a progress bar."""
    start = time.perf_counter()
    with progress_bar() as show:
        drawn = draw(cascade, jobs, show)
    seconds = time.perf_counter() - start
    found = sum(len(job.prompts) for job in jobs.values()) - drawn
    rate = f" ({drawn / seconds:.1f} a second)" if drawn else ""
    print(f"{drawn} pictures drawn in {seconds:.0f} s{rate}, {found} drawn before")
