"""imagen-pytorch runs, and the compared networks are as equal as docs/benchmarks.md says."""

import json

import numpy as np
import pytest
import torch
from networks import TEXT_DIM, TEXT_LENGTH, size_and_flops, tiny_cascade, tiny_stage
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import graphs, imagen_pytorch_peer, ours, peer_curve
from benchmarks.measure import DENOISE, TRAIN
from imagen_jax.config import TextConfig, load_config
from imagen_jax.evaluation.prompts import load_prompts
from imagen_jax.text.encoder import load_encoder


@pytest.mark.parity
def test_the_equal_graphs_are_equal():
    length, dim = 32, 128  # tokens of a caption, width of the embedded encoder
    unet = imagen_pytorch_peer.equal_unet(length, dim, 0)
    text = {
        "text_embeds": torch.ones(1, length, dim),
        "text_mask": torch.ones(1, length, dtype=torch.bool),
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(torch.ones(1, 3, 16, 16), torch.zeros(1), **text)
    theirs = sum(parameter.numel() for parameter in unet.parameters())
    cascade = tiny_cascade(model=graphs.EQUAL_MODEL)
    network = ours.open_equal_graph(cascade, "stage", dim).network
    parameters, flops = size_and_flops(network, 16, length)
    # Text conditioning and attention differ, see docs/benchmarks.md; the convolutions do not.
    assert parameters == pytest.approx(theirs, rel=0.04)
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.slow
@pytest.mark.parity
def test_its_programs_run_with_about_the_requested_parameters():
    subject = imagen_pytorch_peer.build(
        imagen_pytorch_peer.readme_unet, tiny_stage(), TEXT_LENGTH, TEXT_DIM, 2, 4_000_000
    )
    assert subject.parameters == pytest.approx(4_000_000, rel=0.1)  # widths come in steps of 2
    for name in (TRAIN, DENOISE):
        subject.programs[name].run(1)
        assert subject.programs[name].facts.matrix_flops > 0


@pytest.mark.slow
@pytest.mark.parity
def test_peer_curve_trains_samples_and_scores(tmp_path, monkeypatch):
    arguments = ["--minutes=0.001", "--every=0.001", "--num_prompts=5", "--parameters=100000"]
    monkeypatch.setattr("sys.argv", ["peer_curve", f"--out={tmp_path}", *arguments])
    peer_curve.main()
    # The time limit is shorter than one step, so the first step ends the run.
    (point,) = json.loads((tmp_path / "curve.json").read_text())
    assert point["seen"] == {"base": 32}
    assert set(point["accepted"]) > {"one object", "two objects", "count"}
    assert np.load(tmp_path / "minute_0000.00.npy").shape == (5, 32, 32, 3)
    assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parity
def test_pictures_come_from_the_parameters_and_not_from_their_average():
    config = load_config(peer_curve.CONFIG)
    text = peer_curve.PeerText(load_encoder(TextConfig(max_length=peer_curve.TEXT_LENGTH)))
    trainer = peer_curve.make_trainer(text, 100_000)
    prompts = load_prompts(config.data, 5).prompts[:1]
    captions = [prompt.text for prompt in prompts]
    image = np.zeros((1, 32, 32, 3), np.uint8)
    peer_curve.train_one(trainer, {"image": image, "captions": captions}, text)
    before = peer_curve.draw(trainer, prompts, text, 1)
    with torch.no_grad():
        for parameter in trainer.imagen.unets.parameters():
            parameter.add_(0.1)  # stands in for one more step; the average does not change
    after = peer_curve.draw(trainer, prompts, text, 1)
    assert np.abs(after.astype(int) - before).mean() > 1.0


@pytest.mark.parametrize(
    ("argument", "message"), [("--num_prompts=2", "at least 5"), ("--minutes=0", "positive")]
)
@pytest.mark.parity
def test_wrong_arguments_are_one_message(tmp_path, monkeypatch, capsys, argument, message):
    monkeypatch.setattr("sys.argv", ["peer_curve", f"--out={tmp_path}", argument])
    with pytest.raises(SystemExit):
        peer_curve.main()
    assert message in capsys.readouterr().err
