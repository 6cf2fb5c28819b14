"""check_data as a command: what it finds in a set with known faults."""

import base64
import io
import re
from pathlib import Path

import layouts
import numpy as np
import pytest
from PIL import Image

from imagen_jax.cli import check_data
from imagen_jax.config import DataConfig
from imagen_jax.data.check import examine
from imagen_jax.data.check_page import Rates, histogram, page, summary
from imagen_jax.data.open import load_records
from imagen_jax.data.records import DecodedRecords, ItemFilter

ROOT = Path(__file__).parent.parent.parent
TINY = f"--config={ROOT / 'configs' / 'tiny.py'}"


@pytest.fixture
def faulty(tmp_path):
    """Forty items: 30 good ones, three of them the same picture; 6 bad, 4 small."""
    files = []
    for i in range(40):
        item = {
            f"{i}.png": layouts.png(0 if i in (5, 6) else i),
            f"{i}.json": b'{"captions": ["<b>%d</b>", "another of %d"]}' % (i, i),
        }
        if i in (10, 11, 12):
            item[f"{i}.png"] = item[f"{i}.png"][:60]
        elif i in (13, 14):
            item[f"{i}.png"] = b""
        elif i == 15:
            item[f"{i}.json"] = b"{}"
        elif i >= 36:
            item[f"{i}.png"] = layouts.png(i, width=4, height=50)
        files += item.items()
    files += [("lonely.png", layouts.png(3))]
    layouts.write_tar(tmp_path / "tars" / "0.tar", files)
    return tmp_path / "tars"


def test_what_is_found(faulty):
    config = DataConfig(source="webdataset", path=str(faulty))
    source = DecodedRecords(load_records(config, None), 8, ItemFilter(min_side=1.0))
    found = examine(source)
    assert (found.total, found.num_examined, found.good) == (40, 40, 30)
    assert found.bad == {"truncated picture": 3, "empty file": 2, "no caption": 1}
    assert found.filtered == {"picture too small": 4}
    assert found.skipped == {"items without a picture or without a caption": 1}
    # Numbers 0, 5 and 6 are one picture.
    assert (found.duplicates, found.largest_group, found.repeated_captions) == (2, 3, 0)
    assert found.captions_per_item == {2: 30}
    assert (
        sorted(found.examples) == sorted(found.bad)
        and len(found.examples["truncated picture"]) == 3
    )
    assert found.widths.count(4) == 4 and found.heights.count(50) == 4
    shown = [item.caption for item in found.samples]
    assert shown[0] == "<b>0</b>" and len(shown) >= 24 and len(set(shown)) == len(shown)
    few = examine(source, most=10)
    assert few.num_examined == 10 and few.total == 40


def test_text_and_page(faulty):
    config = DataConfig(source="webdataset", path=str(faulty))
    source = DecodedRecords(load_records(config, None), 16, ItemFilter())
    found = examine(source)
    found.cpu_seconds = found.good / 64
    assert found.per_core == 64
    starved = Rates(loader=100, cores=2, step=512, devices=4)
    text = summary(found, starved)
    assert "6 (15.00%)" in text and "3 truncated picture" in text
    assert "STARVED" in text and "a device needs 2.0 cores" in text
    assert "not starved" in summary(found, Rates(loader=500, cores=2, step=400))
    assert "not measured" in summary(found, Rates(loader=500, cores=2))
    html = page("a <set>", found, starved)
    assert "<b>0</b>" not in html and "&lt;b&gt;0&lt;/b&gt;" in html and "a &lt;set&gt;" in html
    assert "http" not in html  # nothing is loaded from elsewhere
    pictures = re.findall(r"base64,([^\"]+)", html)
    assert len(pictures) == len(found.samples)
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0]))))
    np.testing.assert_array_equal(first, found.samples[0].image)


def test_histogram():
    assert histogram([1, 5, 5, 30], (0, 2, 10, 20)) == {
        "0 - 2": 1,
        "2 - 10": 2,
        "10 - 20": 0,
        "20 -": 1,
    }
    assert histogram([], (0, 1)) == {}


def test_command(faulty, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    flags = [TINY, "--config.data.source=webdataset", f"--config.data.path={faulty}"]
    flags += [f"--out={out}", "--seconds=0.1"]
    assert check_data.main([*flags, "--images_per_second=1e9"]) == 0
    assert "STARVED" in capsys.readouterr().out
    assert out.read_text().count("<img") >= 24
    for wrong, message in (
        (["--stage=nothing"], "not one of base, sr16"),
        (["--config.data.min_side=100"], "none of the items"),
        (["--images_per_second=0"], "must be positive"),
    ):
        assert check_data.main([*flags, *wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_measured_step_of_a_drawn_source(tmp_path, capsys):
    smallest = ROOT / "tests" / "training" / "smallest_config.py"
    config = tmp_path / "config.py"
    config.write_text(smallest.read_text().replace("batch_size=4", "batch_size=8"))
    flags = [f"--config={config}", f"--out={tmp_path / 'page.html'}", "--num_items=50"]
    assert check_data.main([*flags, "--seconds=0.1", "--measure_step"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("train step"))
    assert float(re.search(r"([\d,]+) images/s", line)[1].replace(",", "")) > 0
