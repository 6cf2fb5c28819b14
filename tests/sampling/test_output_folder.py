"""Drawn pictures as files: names, resuming, and what is never overwritten."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from imagen_jax.config import SampleConfig
from imagen_jax.errors import UserError
from imagen_jax.sampling.folder import PictureFolder
from imagen_jax.sampling.origin import Origin, slug_of

ORIGIN = Origin(
    prompts=("a red circle", ""),
    seeds=(3, 7),
    aspect="1:1",
    settings={"base": SampleConfig()},
    weights={"base": "0" * 64},
)


def fill(folder, origin=ORIGIN, side=8):
    for row in range(origin.total):
        folder.write("base", row, np.full((side, side, 3), row, np.uint8))


def test_names_carry_number_seed_and_prompt():
    names = [ORIGIN.file_name(row) for row in range(4)]
    assert names[:2] == ["000_seed3_a-red-circle.png", "000_seed7_a-red-circle.png"]
    assert names[2:] == ["001_seed3.png", "001_seed7.png"]
    many = dataclasses.replace(ORIGIN, prompts=("x",) * 2000)
    assert many.file_name(2) == "0001_seed3_x.png"


@pytest.mark.parametrize(
    ("prompt", "slug"),
    [
        ("  A red/../circle!  ", "a-red-circle"),
        ("../../etc/passwd", "etc-passwd"),
        ("x" * 400, "x" * 40),
        ("\N{GRINNING FACE}", ""),
        ("\ud83d", ""),
        ("\u5186" * 100, "\u5186" * 40),
        ("a\nb\0c", "a-bc"),
    ],
)
def test_slugs_are_file_names(prompt, slug):
    assert slug_of(prompt) == slug
    assert len(slug.encode()) <= 120


def test_a_second_folder_finds_what_the_first_wrote(tmp_path):
    first = PictureFolder(tmp_path / "out", ORIGIN)
    first.write("base", 2, np.full((8, 8, 3), 5, np.uint8))
    again = PictureFolder(tmp_path / "out", ORIGIN)
    assert [again.has("base", row) for row in range(4)] == [False, False, True, False]
    assert (again.read("base", 2) == 5).all()
    (tmp_path / "out" / "base" / ORIGIN.file_name(2)).write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read"):
        again.read("base", 2)


def test_other_pictures_are_not_overwritten(tmp_path):
    out = tmp_path / "out"
    fill(PictureFolder(out, ORIGIN))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for change, message in (
        ({"prompts": ("a blue circle", "")}, r"prompts.0: a red circle in the directory, a blue"),
        ({"seeds": (3, 8)}, r"seeds: \[3, 7\] in the directory, \[3, 8\] now"),
        ({"weights": {"base": "1" * 64}}, "weights.base"),
        ({"settings": {"base": SampleConfig(num_steps=5)}}, "settings.base.num_steps: 64"),
        ({"prompts": tuple(map(str, range(2000)))}, "and 1,9.. more"),
    ):
        with pytest.raises(UserError, match=message):
            PictureFolder(out, dataclasses.replace(ORIGIN, **change))
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["photo.jpg", "base/mine.PNG", "grid_base.png"])
def test_a_directory_with_pictures_of_others_is_refused(tmp_path, name):
    (tmp_path / "base").mkdir()
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match="holds other pictures"):
        PictureFolder(tmp_path, ORIGIN)
    (tmp_path / name).unlink()
    (tmp_path / "notes.txt").write_text("x")
    PictureFolder(tmp_path, ORIGIN)


def test_a_name_for_each_origin():
    names = {
        dataclasses.replace(ORIGIN, **change).directory_name()
        for change in ({}, {"seeds": (3,)}, {"aspect": "3:2"}, {"low_res_sha256": "a"})
    }
    assert len(names) == 4 and all(name.startswith("a-red-circle-") for name in names)
    assert ORIGIN.directory_name() == dataclasses.replace(ORIGIN).directory_name()


def test_a_grid_of_many_prompts_has_pages(tmp_path):
    origin = dataclasses.replace(ORIGIN, prompts=tuple(f"number {i}" for i in range(60)))
    folder = PictureFolder(tmp_path, origin)
    fill(folder, origin)
    pages = folder.write_grids()
    assert [page.name for page in pages] == [f"grid_base_{number}.png" for number in (1, 2, 3)]
    for page in pages:
        with Image.open(page) as image:
            assert max(image.size) <= 4096
