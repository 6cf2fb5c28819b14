"""Bytes of stored captions: what is counted is what the lengths say."""

import json
import zipfile

import numpy as np

from benchmarks.caption_sizes import bytes_on_disk, cut_anew, read_captions


def test_prompts_of_workflows_are_read_without_negative_ones(tmp_path):
    def node(text, **values):
        return {"type": "CLIPTextEncode", "widgets_values": [text], **values}

    inner = {"definitions": {"subgraphs": [{"nodes": [node("a  fox\nin snow"), node("狐")]}]}}
    nodes = [node("a red car"), node("blurry", title="Negative Prompt"), node("a red car")]
    package = tmp_path / "templates.whl"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("one.json", json.dumps({"nodes": [*nodes, {"type": "KSampler"}], **inner}))
        archive.writestr("readme.txt", "no")
    assert read_captions(package) == ["a red car", "a fox in snow"]
    lines = tmp_path / "captions.txt"
    lines.write_text("one\n\n two words \n")
    assert read_captions(lines) == ["one", "two words"]


def test_pieces_have_the_lengths_that_are_asked_for():
    pieces = cut_anew([" ".join(map(str, range(5000)))], 20.0, 15.0, 4000)
    lengths = np.array([len(piece.split()) for piece in pieces])
    assert len(pieces) == 4000 and lengths.min() >= 1
    assert abs(lengths.mean() - 20.0) < 1.0 and abs(lengths.std() - 15.0) < 2.0
    assert np.median(lengths) < lengths.mean() - 2.0
    words = pieces[0].split()
    assert words == [str((int(words[0]) + i) % 5000) for i in range(len(words))]


def test_bytes_are_those_of_the_tokens_and_little_else(tmp_path):
    captions = [f"caption {i}" for i in range(300)]
    lengths = [5 + i % 11 for i in range(300)]
    for dtype, token in (("bfloat16", 2 * 256), ("int8", 256 + 4)):
        size = bytes_on_disk(captions, lengths, 256, dtype, tmp_path / dtype)
        # Hashes and headers of each record; a shard is filled up to whole blocks of 64 KiB.
        assert 0 < size - token * sum(lengths) < 120 * len(captions) + 2 * 65536
