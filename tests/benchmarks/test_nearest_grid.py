"""The picture of an evaluation shows what the report names, in order."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.nearest_grid import nearest_grid
from imagen_jax.config import DataConfig
from imagen_jax.data.open import load_source
from imagen_jax.errors import UserError
from imagen_jax.evaluation.drawing import Folder
from imagen_jax.evaluation.prompts import load_prompts

NUMBER = 4


def solid(value, size):
    return np.full((size, size, 3), value, np.uint8)


@pytest.fixture
def evaluation(tmp_path):
    """Four prompts; each is drawn in a blue of its own, its nearest is the item of its number."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(solid(40 * number, 128)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"number {number}")
    data = {"source": "folder", "path": str(folder)}
    prompts = load_prompts(DataConfig(**data), NUMBER).prompts
    rows = []
    for index, prompt in enumerate(prompts):
        rows.append({"nearest": {"item": index}})
        for stage, size in (("base", 64), ("sr128", 128)):
            path = tmp_path / "pictures" / stage
            path.mkdir(parents=True, exist_ok=True)
            Folder(path).write(prompt, solid((0, 0, 100 + 20 * index + size // 64), size))
    report = {
        "settings": {
            "data": data,
            "num_prompts": NUMBER,
            "stages": {"base": {}, "sr128": {}},
        },
        "stages": {"base": {"resolution": 64}, "sr128": {"resolution": 128}},
        "prompts": rows,
        "nearest": {},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    return tmp_path


def test_each_row_has_the_truth_the_stages_and_the_nearest(evaluation):
    data = DataConfig(source="folder", path=str(evaluation / "data"))
    prompts = load_prompts(data, NUMBER)
    grid = nearest_grid(evaluation, rows=1)
    firsts = [[p.group for p in prompts.prompts].index(group) for group in prompts.groups]
    truth = list(prompts.true_pictures(128))
    training = load_source(data, "train", 128)
    expected = []
    for index in firsts:
        drawn = [[0, 0, 100 + 20 * index + size // 64] for size in (64, 128)]
        expected += [truth[index][0, 0], *drawn, training.item(index).image[0, 0]]
    # One row of pictures of 128 pixels, 132 apart, at the foot of the picture.
    row = grid[-64]
    centres = [4 + 64 + 132 * column for column in range(4)]
    width = grid.shape[1] // len(firsts)
    found = [row[group * width + x] for group in range(len(firsts)) for x in centres]
    np.testing.assert_array_equal(found, expected)


def test_more_rows_are_taller_and_never_more_than_there_are(evaluation):
    heights = [nearest_grid(evaluation, rows).shape[0] for rows in (1, 2, 50)]
    assert heights[0] < heights[1] == heights[2]


@pytest.mark.parametrize("report", [None, {"settings": {}}])
def test_what_cannot_be_shown_is_refused(tmp_path, report):
    if report is not None:
        (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"no finished evaluation|data in files only"):
        nearest_grid(tmp_path, rows=1)
