"""The report as one self-contained page: tables, then pictures, failures first."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from imagen_jax.config import DataConfig
from imagen_jax.data.open import load_source
from imagen_jax.data.source import Source
from imagen_jax.evaluation import tables
from imagen_jax.evaluation.prompt_set import Prompt
from imagen_jax.evaluation.report import Pictures
from imagen_jax.pictures import encode_png, printable

# Pictures shown of each kind, at most: the page must open quickly.
MAX_FAILURES = 200
MAX_SUCCESSES = 50
MAX_UNSCORED = 48

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
       color: #222; background: #fff; }}
table {{ border-collapse: collapse; margin: 0 0 1rem; }}
td, th {{ padding: .2rem .7rem .2rem 0; text-align: left; border-bottom: 1px solid #ddd; }}
.cards {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
.card {{ width: 17.5rem; border: 1px solid #ddd; border-radius: 4px; padding: .6rem; }}
.card.wide {{ width: 24.5rem; }}
.pictures {{ display: flex; gap: .4rem; }}
figure {{ margin: 0; }}
figcaption, small {{ color: #666; font-size: .8rem; }}
img {{ width: 8rem; height: 8rem; image-rendering: pixelated; display: block; }}
img.large {{ image-rendering: auto; }}
.card p {{ margin: .3rem 0 0; }}
.failed {{ color: #b00020; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def html_report(report: Mapping[str, Any], pictures: Pictures, data: DataConfig) -> str:
    """The page. It loads no other file.

    Args:
      report: the content of `report.json`.
      pictures: the pictures of the evaluation.
      data: the data that the cascade was trained on, for the nearest training pictures.
    """
    body = [_paragraph(note) for note in report["notes"]]
    body += _tables(report)
    if pictures.generated:
        body += _pictures(report, pictures, data)
    else:
        body += _enlarged(pictures)
    body += ["<h2>Settings</h2>", _settings(report)]
    title = f"Evaluation of {report['settings']['cascade'] or 'a cascade'}"
    return _PAGE.format(title=escape(printable(title)), body="\n".join(body))


def _tables(report: Mapping[str, Any]) -> list[str]:
    body = []
    for name, stage in report["stages"].items():
        if "accuracy" in stage:
            body.append(f"<h2>Obeys the caption: {escape(name)}, {stage['resolution']} pixels</h2>")
            body.append(_table(tables.accuracy_table(stage["accuracy"])))
            if "accepted" in stage["true_pictures"]:
                true = tables.percent(stage["true_pictures"]["accepted"])
                body.append(_paragraph(f"True pictures are accepted in {true} of cases."))
    body += ["<h2>Colour and diversity</h2>", _table(tables.statistics_table(report["stages"]))]
    denoising = tables.denoising_table(report["stages"])
    if len(denoising) > 1:
        body += ["<h2>Error of the denoised pictures</h2>", _table(denoising)]
    enlarged = tables.super_resolution_table(report["stages"])
    if len(enlarged) > 1:
        body += ["<h2>Super-resolution</h2>", _table(enlarged)]
    if "nearest" in report:
        found = report["nearest"]
        body += [
            "<h2>Nearest training picture</h2>",
            _paragraph(
                f"Median root-mean-square distance at {found['side']}x{found['side']} pixels, in "
                f"1/255, of pictures of {found['stage']} to the nearest of "
                f"{found['looked_through']:,} of {found['training_pictures']:,} training pictures."
            ),
            _table(tables.nearest_table(found)),
        ]
    return body


def _pictures(report: Mapping[str, Any], pictures: Pictures, data: DataConfig) -> list[str]:
    final = list(pictures.stages)[-1]
    rows = list(zip(report["prompts"], pictures.prompts.prompts, strict=True))
    training = None
    if "nearest" in report:
        training = load_source(data, "train", pictures.stages[final].config.resolution)
    if "accuracy" not in report["stages"][final]:
        return _section("Pictures", rows, rows[:MAX_UNSCORED], pictures, training)
    failed = [row for row in rows if not row[0]["scores"][final]["accepted"]]
    passed = [row for row in rows if row[0]["scores"][final]["accepted"]]
    return [
        *_section("Failures", failed, failed[:MAX_FAILURES], pictures, training),
        *_section("Successes", passed, passed[:MAX_SUCCESSES], pictures, training),
    ]


def _section(
    title: str,
    rows: Sequence[tuple[Mapping[str, Any], Prompt]],
    shown: Sequence[tuple[Mapping[str, Any], Prompt]],
    pictures: Pictures,
    training: Source | None,
) -> list[str]:
    """Cards of the `shown` rows by group, under a heading with the number of all rows."""
    body = [f"<h2>{escape(title)} ({len(shown)} of {len(rows)} shown)</h2>"]
    for group in pictures.prompts.groups:
        cards = [_card(row, p, pictures, training) for row, p in shown if p.group == group]
        if cards:
            body += [f"<h3>{escape(group)}</h3>", '<div class="cards">', *cards, "</div>"]
    return body


def _card(
    row: Mapping[str, Any], prompt: Prompt, pictures: Pictures, training: Source | None
) -> str:
    figures = [_figure(pictures.drawn(stage).read(prompt), stage) for stage in pictures.stages]
    lines = [f"<p><b>{escape(printable(prompt.text)) or '(empty)'}</b></p>"]
    # The score of the final stage only: it judges the picture that a user gets.
    for stage, score in list(row["scores"].items())[-1:]:
        if score["failed"]:
            lines.append(f'<p class="failed">wrong: {escape(", ".join(score["failed"]))}</p>')
        lines.append(f"<p><small>{escape(stage)} seen {escape(score['seen'])}</small></p>")
    if training is not None:
        item = training.item(row["nearest"]["item"])
        distance = f"nearest, {row['nearest']['distance']:.1f} away"
        figures.append(_figure(item.image, distance))
        lines.append(f"<p><small>nearest: {escape(printable(item.caption))}</small></p>")
    lines.append(f"<p><small>{escape(prompt.name)}, seed {prompt.seed}</small></p>")
    wide = " wide" if len(figures) > 2 else ""
    return (
        f'<div class="card{wide}"><div class="pictures">{"".join(figures)}</div>'
        f"{''.join(lines)}</div>"
    )


def _enlarged(pictures: Pictures) -> list[str]:
    """True pictures beside their reductions and what each stage makes of those."""
    cards = []
    for stage, opened in pictures.stages.items():
        truth = pictures.truth(opened.config.resolution)
        for prompt, true in zip(pictures.with_truth[:MAX_UNSCORED], truth, strict=False):
            figures = [
                _figure(pictures.true_low_res(stage).read(prompt), "low resolution"),
                _figure(pictures.from_truth(stage).read(prompt), stage),
                _figure(true, "true"),
            ]
            cards.append(
                f'<div class="card wide"><div class="pictures">{"".join(figures)}</div>'
                f"<p><b>{escape(printable(prompt.text))}</b></p></div>"
            )
    return ["<h2>Enlarged true pictures</h2>", '<div class="cards">', *cards, "</div>"]


def _figure(picture: np.ndarray, caption: str) -> str:
    data = base64.b64encode(encode_png(picture)).decode("ascii")
    # Small pictures are enlarged on the page and show their pixels; large ones are smoothed.
    large = ' class="large"' if picture.shape[0] > 128 else ""
    return (
        f'<figure><img{large} src="data:image/png;base64,{data}" alt="">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _settings(report: Mapping[str, Any]) -> str:
    from imagen_jax.config import flatten

    rows = [["setting", "value"]]
    rows += [[key, str(value)] for key, value in flatten(report["settings"]).items()]
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [_row(head, "th"), *(_row(row, "td") for row in body)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(printable(c))}</{tag}>" for c in cells) + "</tr>"


def _paragraph(text: str) -> str:
    return f"<p>{escape(printable(text))}</p>"
