"""Shows the findings of `check` as text, and as an HTML page in a single file."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from imagen_jax.data.check import Findings
from imagen_jax.data.source import Item

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
       color: #222; background: #fff; }}
pre {{ background: #f5f5f5; padding: .7rem; overflow-x: auto; }}
.cards {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
.card {{ width: 11rem; font-size: .8rem; overflow-wrap: anywhere; }}
.card img {{ width: 11rem; height: 11rem; }}
.card p {{ margin: .2rem 0 0; }}
.other {{ color: #777; }}
table {{ border-collapse: collapse; font-size: .8rem; }}
td {{ padding: 0 .6rem 0 0; text-align: right; white-space: nowrap; }}
td.bar {{ width: 22rem; text-align: left; }}
.bar div {{ background: #4878a8; height: .8rem; }}
.histograms {{ display: flex; flex-wrap: wrap; gap: 2rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<pre>{summary}</pre>
<h2>{samples} samples, as the stage sees them</h2>
<div class="cards">{cards}</div>
<h2>Histograms</h2>
<div class="histograms">{histograms}</div>
</body>
</html>
"""
# Lower edges of the bins of histograms: shorter side in pixels, longer side over shorter side,
# characters of a caption.
_SIDES = (1, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_ASPECTS = (1.0, 1.1, 1.25, 4 / 3 + 0.01, 1.5, 1.75, 2.0, 3.0, 5.0)
_LENGTHS = (0, 10, 20, 40, 60, 80, 120, 160, 240, 320, 640, 1280)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast pictures are loaded and consumed, in pictures a second.

    Attributes:
      loader: rate of the loader of this process, as configured.
      cores: number of cores that the process may use.
      step: rate of the train step on all devices; None if unknown.
      devices: number of devices of that step.
    """

    loader: float
    cores: int
    step: float | None = None
    devices: int = 1

    @property
    def is_starved(self) -> bool | None:
        """Whether the loader is slower than the train step; None if unknown."""
        return None if self.step is None else self.loader < self.step


def summary(found: Findings, rates: Rates) -> str:
    """The findings as lines of text."""
    lines = [
        f"items        {found.num_examined:,} looked at of {found.total:,}, {found.good:,} good"
    ]
    lines += [
        f"  {number:,} {reason} (while the files were scanned)"
        for reason, number in found.skipped.items()
    ]
    share = found.bad.total() / max(found.num_examined, 1)
    lines.append(f"bad          {found.bad.total():,} ({share:.2%})")
    for kind, number in found.bad.most_common():
        lines += [f"  {number:,} {kind}", *(f"      {text}" for text in found.examples[kind])]
    lines.append(f"filtered     {found.filtered.total():,}")
    lines += [f"  {number:,} {kind}" for kind, number in found.filtered.most_common()]
    lines.append(
        f"duplicates   {found.duplicates:,} pictures equal to an earlier one, the largest group "
        f"has {found.largest_group:,}; {found.repeated_captions:,} captions repeated"
    )
    if found.caption_lengths:
        counts = found.captions_per_item
        mean = sum(number * items for number, items in counts.items()) / counts.total()
        middle, high = np.percentile(found.caption_lengths, (50, 99))
        lines.append(
            f"captions     {mean:.1f} a picture, median {middle:.0f} characters, 99 % at most "
            f"{high:.0f}"
        )
    if found.unreadable_captions:
        lines.append(
            f"  {found.unreadable_captions:,} with characters that cannot be read (U+FFFD)"
        )
    if found.widths:
        short = np.minimum(found.widths, found.heights)
        low, middle = np.percentile(short, (5, 50))
        lines.append(f"shorter side median {middle:.0f} pixels, 5 % below {low:.0f}")
    lines += _rate_lines(found, rates)
    return "\n".join(lines)


def _rate_lines(found: Findings, rates: Rates) -> list[str]:
    lines = [
        f"loader       {rates.loader:,.0f} images/s as configured, {found.per_core:,.0f} a core of "
        f"{rates.cores}"
    ]
    if rates.step is None:
        return [*lines, "train step   not measured (--measure_step, or --images_per_second=N)"]
    cores = rates.step / rates.devices / max(found.per_core, 1e-9)
    lines.append(
        f"train step   {rates.step:,.0f} images/s on {rates.devices} device(s): "
        + ("STARVED, the loader is slower" if rates.is_starved else "not starved")
        + f"; a device needs {cores:.1f} cores"
    )
    if rates.is_starved:
        lines.append(
            "  use more data.num_workers if there are cores, store the pictures nearer to the size "
            "of the stage, or use another format (docs/data.md)"
        )
    return lines


def page(title: str, found: Findings, rates: Rates) -> str:
    """The findings as an HTML page, with samples and histograms."""
    histograms = [_histogram("Characters of a caption", found.caption_lengths, _LENGTHS)]
    if found.widths:
        widths, heights = np.array(found.widths), np.array(found.heights)
        short, long = np.minimum(widths, heights), np.maximum(widths, heights)
        histograms.append(_histogram("Shorter side in pixels", short, _SIDES))
        histograms.append(_histogram("Longer over shorter side", long / short, _ASPECTS))
    return _PAGE.format(
        title=escape(title),
        summary=escape(summary(found, rates)),
        samples=len(found.samples),
        cards="\n".join(map(_card, found.samples)),
        histograms="\n".join(histograms),
    )


def _card(item: Item) -> str:
    from PIL import Image

    stream = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(item.image))
    # Large pictures would make the page many megabytes large.
    picture.thumbnail((256, 256))
    picture.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    rest = "".join(f'<p class="other">{escape(text)}</p>' for text in item.other_captions)
    return (
        f'<div class="card"><img src="data:image/png;base64,{data}" alt="">'
        f"<p>{escape(item.caption)}</p>{rest}</div>"
    )


def histogram(values: Sequence[float], edges: Sequence[float]) -> Mapping[str, int]:
    """The number of values in each bin, by its label; empty bins at both ends are left out.

    Args:
      values: the numbers.
      edges: lower edges of the bins; the last bin has no upper edge.
    """
    counts = np.histogram(values, [*edges, np.inf])[0]
    filled = np.flatnonzero(counts)
    if not len(filled):
        return {}
    labels = [f"{low:.4g} - {high:.4g}" for low, high in itertools.pairwise(edges)]
    labels.append(f"{edges[-1]:.4g} -")
    return {labels[i]: int(counts[i]) for i in range(filled[0], filled[-1] + 1)}


def _histogram(title: str, values: Sequence[float], edges: Sequence[float]) -> str:
    counts = histogram(values, edges)
    most = max(counts.values(), default=1)
    rows = "".join(
        f'<tr><td>{label}</td><td class="bar"><div style="width:{100 * number / most:.1f}%"></div>'
        f"</td><td>{number:,}</td></tr>"
        for label, number in counts.items()
    )
    return f"<div><h3>{escape(title)}</h3><table>{rows}</table></div>"
