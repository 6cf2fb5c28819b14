"""What storing embeddings in bfloat16 or int8 does to them, and to the pictures of `shapes`.

    python -m benchmarks.embedding_dtype --num_prompts=200 --out=outputs/embedding_dtype

Draws the held-out prompts with the shipped weights three times, from the same seeds: with the
encoder's embeddings and with those that a store of either dtype gives back. Before that, how well
the base stage denoises true pictures with them, with the same noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.denoising_error import errors, load_denoiser
from imagen_jax.cli.common import setup_jax
from imagen_jax.evaluation.evaluate import Request, evaluate
from imagen_jax.evaluation.prompts import load_prompts
from imagen_jax.evaluation.tables import text_report
from imagen_jax.sampling import Cascade
from imagen_jax.text.embedding_store import pack, unpack
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.types import TextCond
from imagen_jax.weights import artefact

SHIPPED = Path(artefact.__file__).parent.parent / "weights" / "shapes"
NUM_SCENES = 128


class Stored(TextEncoder):
    """An encoder whose embeddings have been stored and read again."""

    dtype = "float32"

    def encode_captions(self, captions: Sequence[str]) -> TextCond:
        """Encodes, rounds as a store of `dtype` does, and gives back."""
        text = super().encode_captions(captions)
        return unpack(*pack(text.tokens, self.dtype), text.mask)


def stored(encoder: TextEncoder, dtype: str) -> Stored:
    """The encoder with its embeddings rounded to a store's dtype."""
    fields = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)}
    return type("Stored", (Stored,), {"dtype": dtype})(**fields)


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedding_dtype")
    parser.add_argument("--num_prompts", type=int, default=200)
    parser.add_argument("--stages", default="base,sr64", help="default base,sr64")
    parser.add_argument("--out", default="outputs/embedding_dtype", metavar="DIR")
    flags = parser.parse_args(arguments)
    setup_jax()
    cascade = Cascade.from_name("shapes")
    data = cascade.artefact.config.data
    prompts = load_prompts(data, flags.num_prompts)
    captions = [prompt.text for prompt in prompts.prompts]
    exact = cascade.encoder.encode_captions(captions)
    valid = np.asarray(exact.mask)
    denoiser = load_denoiser(str(SHIPPED), "base")
    for dtype in ("float32", "bfloat16", "int8"):
        encoder = stored(cascade.encoder, dtype)
        of_x = errors(dataclasses.replace(denoiser, encode=encoder.encode_captions), NUM_SCENES)
        print(f"{dtype}: mean squared error of x_hat over {NUM_SCENES} scenes at log-SNR "
              + ", ".join(f"{level}: {value:.6f}" for level, value in of_x.items()))  # fmt: skip
        error = np.asarray(encoder.encode_captions(captions).tokens - exact.tokens)[valid]
        size = np.linalg.norm(np.asarray(exact.tokens)[valid])
        print(f"{dtype}: relative error of the embeddings {np.linalg.norm(error) / size:.2e}")
        chain = cascade.chain(flags.stages.split(","), has_picture=False)
        report = evaluate(
            dataclasses.replace(cascade, encoder=encoder),
            data,
            prompts,
            Request(sampling={name: cascade.settings(name) for name in chain}, num_true=1),
            Path(flags.out) / dtype,
        )
        print(text_report(report), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
