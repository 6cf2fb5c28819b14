"""Whole evaluations: of a cascade that draws the true pictures, and of a tiny real one."""

import dataclasses
import html.parser
import itertools
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.config import (
    CascadeConfig,
    DataConfig,
    SampleConfig,
    StageConfig,
    TextConfig,
)
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.samplers import DDIM
from imagen_jax.errors import UserError
from imagen_jax.evaluation import report as report_module
from imagen_jax.evaluation import shapes_scorer
from imagen_jax.evaluation.caption_accuracy import Score
from imagen_jax.evaluation.evaluate import Request, evaluate
from imagen_jax.evaluation.prompts import load_prompts
from imagen_jax.evaluation.scene_reader import SeenScene
from imagen_jax.evaluation.tables import text_report
from imagen_jax.models import EfficientUNetConfig
from imagen_jax.sampling import Cascade
from imagen_jax.stage import open_stage
from imagen_jax.text.encoder import load_encoder
from imagen_jax.types import TextCond
from imagen_jax.weights.artefact import Artefact, StageWeights

SHAPES = DataConfig(source="shapes")
MODEL = EfficientUNetConfig(
    channels=(8,),
    num_res_blocks=(1,),
    strides=(2,),
    self_attention=(False,),
    text_attention=("none",),
    head_dim=8,
)
SAMPLE = SampleConfig(num_steps=2, sampler=DDIM(eta=0.5), guidance=Guidance(1.0))
CONFIG = CascadeConfig(
    name="test",
    text=TextConfig(max_length=12),
    stages={
        "base": StageConfig(resolution=32, model=MODEL, sample=SAMPLE),
        "sr64": StageConfig(resolution=64, low_resolution=32, model=MODEL, sample=SAMPLE),
    },
)
REQUEST = Request(sampling={"base": SAMPLE, "sr64": SAMPLE}, num_true=7, batch_size=16)


def weights(params, digest):
    return StageWeights(
        params=params, sha256=digest, num_parameters=1, images_seen=1, steps=1, training={}
    )


class PerfectCascade:
    """Draws the true picture of each prompt, a blank for `wrong` ones; sr64 is a little darker."""

    def __init__(self, prompts, wrong=()):
        self.config = CONFIG
        self.stages = {name: open_stage(CONFIG, name, 4) for name in CONFIG.stages}
        # Networks that return 0; no picture is drawn with them.
        zeros = {
            name: jax.tree.map(lambda s: np.zeros(s.shape, np.float32), stage.abstract_params())
            for name, stage in self.stages.items()
        }
        self.artefact = Artefact(
            config=CONFIG,
            encoder_identity="e",
            tokenizer_hash="t",
            stages={name: weights(params, name) for name, params in zeros.items()},
        )
        self.texts = [p.text for p in prompts.prompts]
        self.prompts, self.wrong = prompts, wrong
        self.true = {
            name: dict(
                zip(
                    [p.text for p in prompts.prompts],
                    prompts.true_pictures(stage.resolution),
                    strict=True,
                )
            )
            for name, stage in CONFIG.stages.items()
        }

    def default_batch_size(self, name):
        return 16

    def encode(self, prompts):
        """Text that only says which prompt it is."""
        number = np.array([self.texts.index(prompt) for prompt in prompts], np.float32)
        tokens = np.broadcast_to(number[:, None, None], (len(prompts), 2, 4))
        return TextCond(tokens, np.ones((len(prompts), 2), bool))

    def draw_batch(self, name, text, seeds, settings, low_res=None, compiling=None):
        assert (low_res is None) == (name == "base")
        text = [self.texts[int(number)] for number in text.tokens[:, 0, 0]]
        if low_res is not None:
            assert low_res.shape == (len(text), 32, 32, 3) and low_res.dtype == np.uint8
        pictures = np.stack([self.true[name][prompt] for prompt in text])
        pictures[[prompt in self.wrong for prompt in text]] = 128
        return np.maximum(pictures, 2) - (2 if name == "sr64" else 0)


@pytest.fixture(scope="module")
def prompts():
    return load_prompts(SHAPES, 20)


@pytest.fixture(scope="module")
def perfect(prompts, tmp_path_factory):
    """The report of a cascade that fails the first two prompts alone, and its directory."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    wrong = [prompt.text for prompt in prompts.prompts[:2]]
    return evaluate(PerfectCascade(prompts, wrong), SHAPES, prompts, REQUEST, out), out


def test_the_denoising_error_is_that_of_the_true_pictures(perfect, prompts):
    report, out = perfect
    stage = report["stages"]["base"]
    true = np.stack(list(itertools.islice(prompts.true_pictures(32), REQUEST.num_true))) / 127.5 - 1
    # A v of 0 makes x_hat = alpha z = alpha^2 x + alpha sigma eps, so that the error is
    # sigma^4 x^2 + alpha^2 sigma^2 eps^2; the mean over the noise is known to 1 %.
    for level, error in stage["denoising_error"].items():
        alpha2 = 1 / (1 + np.exp(-float(level)))
        expected = (1 - alpha2) ** 2 * np.mean(true**2) + alpha2 * (1 - alpha2)
        assert error == pytest.approx(expected, rel=0.05)
    assert "Error of the denoised pictures" in (out / "report.html").read_text()


def test_what_is_accepted_and_what_is_not(perfect, prompts):
    report, out = perfect
    assert json.loads((out / "report.json").read_text()) == report
    for stage in ("base", "sr64"):
        accuracy = report["stages"][stage]["accuracy"]
        for group, hits in (("one object", 3), ("unseen pair", 3), ("two objects", 4), ("all", 18)):
            assert accuracy[group]["accepted"]["hits"] == hits, (stage, group)
        assert accuracy["two objects"]["parts"]["relation"]["share"] == 1.0
        assert accuracy["one object"]["parts"]["colour"]["hits"] == 3
        assert report["stages"][stage]["true_pictures"]["accepted"]["share"] == 1.0
    row = report["prompts"][0]
    assert row["text"] == prompts.prompts[0].text
    assert row["scores"]["sr64"]["accepted"] is False
    assert "colour" in row["scores"]["sr64"]["failed"]
    assert row["scores"]["sr64"]["seen"] == "on gray: nothing"
    assert report["notes"] == []
    assert "18" not in report["notes"] and "90.0%" in text_report(report)


def test_super_resolution_is_measured_against_the_truth(perfect):
    report, _ = perfect
    entry = report["stages"]["sr64"]["super_resolution"]
    assert entry["from_truth"]["pictures"] == entry["from_generated"]["pictures"] == 7
    # Two blanks of seven, the others darker by two units where they can be.
    assert entry["from_truth"]["accepted"]["hits"] == 5
    assert entry["generated_against_true"]["gained"] == 0
    assert entry["from_truth"]["psnr"] > entry["from_truth"]["psnr_of_bilinear"]
    generated = entry["from_generated"]
    # From generated pictures, all five that are no blanks are two darker, and the blanks too.
    np.testing.assert_allclose(generated["drift"], -2.0, atol=0.3)  # rounding of edges


def test_every_prompt_of_diversity_has_eight_pictures(perfect, prompts):
    report, out = perfect
    again = [f for f in (out / "pictures" / "base").glob("*_*_[1-7].png")]
    assert len(again) == 8 * 7
    # This cascade draws the same whatever the seed.
    assert report["stages"]["base"]["pictures"]["diversity"] == 0.0


def test_diversity_counts_all_eight_pictures(prompts, tmp_path):
    first = {prompt.seed for prompt in prompts.prompts}

    class OneOfEight(PerfectCascade):
        def draw_batch(self, name, text, seeds, settings, low_res=None, compiling=None):
            values = [0 if int(seed) in first else 255 for seed in seeds]
            return np.tile(np.uint8(values)[:, None, None, None], (1, 32, 32, 3))

    request = Request(sampling={"base": SAMPLE})
    report = evaluate(OneOfEight(prompts), SHAPES, prompts, request, tmp_path)
    # The first picture differs from seven others, in 7 of 28 pairs.
    assert report["stages"]["base"]["pictures"]["diversity"] == pytest.approx(255 * 7 / 28)


class Page(html.parser.HTMLParser):
    """The texts, sources and open tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_has_failures_first_and_loads_no_other_file(perfect, prompts):
    _, out = perfect
    text = (out / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.sources) == 2 * 20
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in re.sub(r"data:[^\"]*", "", text)
    joined = "\n".join(page.texts)
    assert joined.index("Failures (2 of 2 shown)") < joined.index("Successes (18 of 18 shown)")
    assert joined.index("Failures") < joined.index(prompts.prompts[0].text)
    assert joined.index(prompts.prompts[0].text) < joined.index("Successes")
    assert "wrong: count, colour" in joined


def random_cascade():
    """Real networks with parameters none of which is zero."""
    encoder = load_encoder(CONFIG.text)
    rng = np.random.default_rng(0)
    stages, opened = {}, {}
    for name in CONFIG.ordered_stages():
        opened[name] = open_stage(CONFIG, name, encoder.dim)
        shapes = opened[name].abstract_params()
        params = jax.tree.map(lambda s: np.float32(0.3 * rng.standard_normal(s.shape)), shapes)
        stages[name] = weights(params, name)
    artefact = Artefact(
        config=CONFIG,
        encoder_identity=encoder.identity,
        tokenizer_hash=encoder.tokenizer_hash,
        stages=stages,
    )
    return Cascade(artefact, encoder, opened)


@pytest.mark.slow
def test_an_interrupted_evaluation_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, prompts):
    cascade = random_cascade()
    # Noise has many "objects", which would take long to read.
    monkeypatch.setattr(
        shapes_scorer, "read_scene", lambda image: SeenScene(f"{image.mean():.2f}", ())
    )
    # One batch size, so that each stage compiles once.
    request = dataclasses.replace(REQUEST, num_true=16)
    calls, stop_at = [], [3, 2, 100]
    draw_batch = Cascade.draw_batch

    def interrupted(self, name, *arguments, compiling):
        if len(calls) == stop_at[0]:
            raise KeyboardInterrupt
        calls.append(name)
        return draw_batch(self, name, *arguments, compiling=compiling)

    monkeypatch.setattr(Cascade, "draw_batch", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(cascade, SHAPES, prompts, request, tmp_path / "a")
        total = len(calls)
        stop_at.pop(0)
        stop_at[0] += total
    # As if killed while it wrote the last batch: one file half-written, under another name.
    pictures = sorted((tmp_path / "a" / "pictures" / "base").glob("*.png"))
    pictures[5].rename(pictures[5].with_name(f".{pictures[5].name}.tmp"))
    before = {path: path.stat().st_mtime_ns for path in pictures[6:]}
    evaluate(cascade, SHAPES, prompts, request, tmp_path / "a")
    # 76 pictures in batches of 16 for each stage, and one batch of 16 from true pictures.
    assert calls.count("base") == 5 + 1 and calls.count("sr64") == 5 + 1
    untouched = [path for path, time in before.items() if path.stat().st_mtime_ns == time]
    assert len(untouched) >= len(before) - 15
    stop_at[0] = 10**6
    evaluate(cascade, SHAPES, prompts, request, tmp_path / "b")
    for name in ("report.json", "report.html", "settings.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    # Pictures of other seeds differ, so diversity sees them.
    assert report["stages"]["base"]["pictures"]["diversity"] > 1.0
    done = len(calls)
    evaluate(cascade, SHAPES, prompts, request, tmp_path / "b")
    assert len(calls) == done


def test_a_directory_of_another_evaluation_is_refused(perfect, prompts, tmp_path):
    _, out = perfect
    cascade = PerfectCascade(prompts)
    warmer = dataclasses.replace(SAMPLE, guidance=Guidance(7.0))
    request = dataclasses.replace(REQUEST, sampling={"base": warmer, "sr64": SAMPLE})
    message = r"stages.base.sampling.guidance.weight: 1.0 in the directory, 7.0 now"
    with pytest.raises(UserError, match=message):
        evaluate(cascade, SHAPES, prompts, request, out)
    artefact = cascade.artefact
    cascade.artefact = dataclasses.replace(
        artefact, stages={**artefact.stages, "base": weights({}, "other")}
    )
    with pytest.raises(UserError, match=r"weights_sha256: base in the directory, other now"):
        evaluate(cascade, SHAPES, prompts, REQUEST, out)
    cascade.artefact = artefact
    with pytest.raises(UserError, match="prompts_sha256"):
        evaluate(cascade, SHAPES, load_prompts(SHAPES, 5), REQUEST, out)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="holds other files"):
        evaluate(cascade, SHAPES, prompts, REQUEST, tmp_path)
    with pytest.raises(UserError, match="is a file"):
        evaluate(cascade, SHAPES, prompts, REQUEST, tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        evaluate(cascade, SHAPES, prompts, REQUEST, tmp_path / "file" / "below")
    with pytest.raises(UserError, match="--num_true=0"):
        request = dataclasses.replace(REQUEST, num_true=0)
        evaluate(cascade, SHAPES, prompts, request, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_super_resolution_alone(prompts, tmp_path):
    request = Request(sampling={"sr64": SAMPLE}, num_true=6)
    report = evaluate(PerfectCascade(prompts), SHAPES, prompts, request, tmp_path)
    stage = report["stages"]["sr64"]
    assert "accuracy" not in stage and "pictures" not in stage
    assert list(stage["super_resolution"]) == ["from_truth"]
    assert stage["super_resolution"]["from_truth"]["accepted"]["share"] == 1.0
    assert "base stage was not run" in report["notes"][0]
    assert len(Page((tmp_path / "report.html").read_text()).sources) == 3 * 6


def folder_of_six(directory):
    """Pictures of red 40 i, i = 0 to 5."""
    directory.mkdir()
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(directory / f"{number}.png")
        (directory / f"{number}.txt").write_text(f"<b>number {number}</b>")
    return DataConfig(source="folder", path=str(directory))


class BrightnessScorer:
    """Accepts pictures whose red channel is below 150."""

    groups = ("any",)
    parts = ("brightness",)
    min_resolution = 64
    notes = ("Bright pictures are wrong.",)

    def prompts(self, number):
        raise NotImplementedError

    def score(self, pictures, prompts):
        reds = [int(picture[..., 0].mean()) for picture in pictures]
        assert len(reds) == len(prompts)
        return [Score({"brightness": red < 150}, f"red {red}") for red in reds]


def test_a_report_uses_the_scorer_of_the_source(tmp_path, monkeypatch):
    data = folder_of_six(tmp_path / "pictures")
    prompts = load_prompts(data, 6)
    monkeypatch.setattr(report_module, "scorer_of", lambda data: BrightnessScorer())
    report = evaluate(PerfectCascade(prompts), data, prompts, REQUEST, tmp_path / "out")
    # sr64 draws two units less.
    numbers = [int(re.search(r"\d", prompt.text)[0]) for prompt in prompts.prompts]
    reds = [max(40 * number - 2, 0) for number in numbers]
    seen = [row["scores"]["sr64"]["seen"] for row in report["prompts"]]
    assert seen == [f"red {red}" for red in reds]
    accuracy = report["stages"]["sr64"]["accuracy"]["all"]
    hits = sum(red < 150 for red in reds)
    assert 0 < hits < 6
    assert accuracy["accepted"]["hits"] == accuracy["parts"]["brightness"]["hits"] == hits
    assert "accuracy" not in report["stages"]["base"]
    assert report["nearest"]["stage"] == "sr64"
    assert BrightnessScorer.notes[0] in report["notes"]
    (note,) = [note for note in report["notes"] if "too small to be read" in note]
    assert note.startswith("base: pictures of 32 pixels") and "at least 64" in note


def test_files_have_no_scorer_but_nearest_pictures(tmp_path):
    data = folder_of_six(tmp_path / "pictures")
    prompts = load_prompts(data, 6)
    report = evaluate(PerfectCascade(prompts), data, prompts, REQUEST, tmp_path / "out")
    assert any("not scored: there is no scorer for folder" in note for note in report["notes"])
    assert "accuracy" not in report["stages"]["base"]
    assert report["stages"]["sr64"]["super_resolution"]["from_truth"]["psnr"] > 40
    for row in report["prompts"]:
        # Pixels differ by the two units by which the cascade draws darker, or less at 0.
        assert row["nearest"]["item"] == int(re.search(r"\d", row["text"])[0])
        assert row["nearest"]["distance"] <= 2.0
    assert report["nearest"]["looked_through"] == report["nearest"]["training_pictures"] == 6
    assert report["nearest"]["median_distance"]["held in"]["true"] == 0.0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;number 3&lt;/b&gt;" in page and "<b>number" not in page
    assert len(Page(page).sources) == 3 * 6
    assert "nearest training picture" in text_report(report)
