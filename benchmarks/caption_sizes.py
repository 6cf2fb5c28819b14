"""What embeddings of captions take on disk, ragged in a store, beside padded ones.

    python -m benchmarks.caption_sizes --tokenizer=DIR --captions=FILE [--width=4096]
    python -m benchmarks.caption_sizes --tokenizer=DIR --captions=FILE --words=20.2,16.3

Writes real stores and counts their bytes. The captions are the lines of a text file, or the
prompts of a package of ComfyUI workflows (`comfyui_workflow_templates_json-*.whl`). With --words
the text of all captions is cut anew into pieces of so many words (log-normal, with this mean and
standard deviation): lengths of a set that is not at hand, with real words. The values are random:
shards are not compressed, so that their size depends on lengths alone.
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagen_jax.stores.writer import StorePlan, write_shards
from imagen_jax.text.embedding_store import pack, to_record, to_table
from imagen_jax.text.tokenizer import load_tokenizer

DTYPES = ("bfloat16", "int8")


def read_captions(path: Path) -> list[str]:
    """The captions of a text file, or the positive English prompts of ComfyUI's workflows."""
    if path.suffix != ".whl":
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    found: dict[str, None] = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".json"):
                found.update(dict.fromkeys(_prompts(json.loads(archive.read(name)))))
    return list(found)


def _prompts(node: Any) -> Iterator[str]:
    """Texts of the text encoder nodes below `node`, negative prompts left out."""
    if isinstance(node, dict):
        negative = "negative" in str(node.get("title", "")).lower()
        if node.get("type") == "CLIPTextEncode" and not negative:
            for value in node.get("widgets_values") or ():
                if isinstance(value, str) and value.strip() and value.isascii():
                    yield " ".join(value.split())
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _prompts(value)


def cut_anew(captions: Sequence[str], mean: float, deviation: float, number: int) -> list[str]:
    """`number` pieces of the captions' running text, of log-normal lengths in words."""
    words = " ".join(captions).split()
    variance = np.log(1.0 + (deviation / mean) ** 2)
    rng = np.random.default_rng(0)
    draws = rng.lognormal(np.log(mean) - variance / 2.0, np.sqrt(variance), number)
    pieces = []
    for length in np.maximum(1, np.round(draws).astype(int)):
        start = int(rng.integers(len(words)))
        pieces.append(" ".join(words[(start + i) % len(words)] for i in range(length)))
    return pieces


def bytes_on_disk(
    captions: Sequence[str], lengths: Sequence[int], width: int, dtype: str, directory: Path
) -> int:
    """All files of a store with embeddings of these lengths."""
    longest = max(lengths)
    tokens = jax.random.normal(jax.random.key(0), (1, longest, width))
    values, scales = (np.asarray(part[0]) for part in pack(tokens, dtype))

    def read(start: int, stop: int, notes: collections.Counter[str]) -> Iterator[bytes]:
        for caption, n in zip(captions[start:stop], lengths[start:stop], strict=True):
            yield to_record(caption, values[:n], scales[:n])
        yield to_table(captions[start:stop])

    write_shards(StorePlan(str(directory), len(captions), 4096, {"dtype": dtype}), read)
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="holds spiece.model")
    parser.add_argument("--words", help="cut the text anew: mean,deviation")
    parser.add_argument("--number", type=int, default=1000, help="of captions with --words")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--max_length", type=int, default=128)
    flags = parser.parse_args()
    captions = read_captions(flags.captions)
    if flags.words:
        mean, deviation = map(float, flags.words.split(","))
        captions = cut_anew(captions, mean, deviation, flags.number)
    tokenizer = load_tokenizer(flags.tokenizer)
    _, mask = tokenizer(captions, flags.max_length)
    lengths = mask.sum(1)
    words = np.array([len(caption.split()) for caption in captions])
    middle, high = np.percentile(lengths, (50, 95))
    print(
        f"{len(captions):,} captions, {words.mean():.1f} words; {lengths.mean():.1f} tokens "
        f"(median {middle:.0f}, 95 % below {high:.0f}), {tokenizer.num_truncated} cut to "
        f"{flags.max_length}"
    )
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as directory:
            size = bytes_on_disk(captions, lengths, flags.width, dtype, Path(directory))
        one = size / len(captions)
        padded = flags.max_length * flags.width * (2 if dtype == "bfloat16" else 1)
        print(f"{dtype:9s} {one:10,.0f} bytes a caption, padded {padded:10,}: {padded / one:.1f} "
              f"times; 100 million: {one / 1e4:.1f} TB")  # fmt: skip


if __name__ == "__main__":
    main()
