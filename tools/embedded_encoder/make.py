"""Makes the embedded text encoder from scratch: `python -m tools.embedded_encoder.make`.

Trains a sentencepiece vocabulary and a small T5 v1.1 encoder on template text, and writes a
Hugging Face directory with checksums. Needs the `emoji` package for the names of emoji.
"""

from __future__ import annotations

import io
import itertools
import random
from pathlib import Path

from absl import app, flags

from imagen_jax.data.builtin.shapes import captions
from imagen_jax.data.builtin.shapes.captions import Caption
from imagen_jax.text import hf_files, t5_load
from imagen_jax.text.t5 import T5Config
from imagen_jax.text.tokenizer import SENTENCEPIECE, load_tokenizer
from tools.embedded_encoder.corpus import Corpus, object_wording
from tools.embedded_encoder.pretrain import PretrainConfig, pretrain

_OUT = flags.DEFINE_string("out", None, "Directory to write to.", required=True)
_STEPS = flags.DEFINE_integer("steps", PretrainConfig.num_steps, "Training steps.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the corpus, the initialisation and the noise.")

VOCAB_SIZE = 2048
CONFIG = T5Config(
    vocab_size=VOCAB_SIZE,
    d_model=128,
    d_kv=32,
    d_ff=256,
    num_layers=4,
    num_heads=4,
    feed_forward="gated-gelu",
)


def shapes_captions(count: int, seed: int) -> list[tuple[str, str]]:
    """`count` pairs (caption, fixed wording), half from each split of the `shapes` set."""
    pairs = []
    for split in ("train", "held_out"):
        made = itertools.islice(captions(seed, split=split), count // 2)
        pairs += [(caption.text, fixed_wording(caption)) for caption in made]
    return pairs


def fixed_wording(caption: Caption) -> str:
    """The claims of a caption in the fixed wording of `corpus.scene`."""
    count = caption.count if caption.kind == "count" else 1
    named = [object_wording(count, c.colour, c.shape, c.size) for c in caption.objects]
    text = f" {(caption.relation or '').split(' ')[0]} ".join(named)
    return f"{text} on {caption.background}" if caption.background else text


def make_tokenizer(directory: Path, corpus: Corpus, seed: int) -> None:
    """Trains `spiece.model`: unigram, lower-casing, with bytes for unknown characters."""
    import sentencepiece

    rng = random.Random(seed)
    # Names and words three times each, so that rare ones have some weight beside the templates.
    lines = 3 * (corpus.names + corpus.words) + [
        text for _ in range(10_000) for text in corpus.draw(rng)
    ]
    lines += [chr(code) for code in range(33, 127)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=VOCAB_SIZE,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc_cf",
        split_digits=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (directory / SENTENCEPIECE).write_bytes(model.getvalue())


def main(argv: list[str]) -> None:
    """Makes the directory."""
    del argv
    directory = Path(_OUT.value)
    directory.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(shapes_captions(20_000, _SEED.value))
    print(f"{len(corpus.names)} names, {len(corpus.captions)} captions", flush=True)
    make_tokenizer(directory, corpus, _SEED.value)
    print(f"vocabulary of {VOCAB_SIZE} pieces written", flush=True)
    tokenizer = load_tokenizer(directory)
    settings = PretrainConfig(num_steps=_STEPS.value, seed=_SEED.value)
    params = pretrain(CONFIG, tokenizer, corpus, settings, lambda text: print(text, flush=True))
    t5_load.save_params(directory, CONFIG, params, "float16")
    hf_files.write_checksums(directory, ["model.safetensors", "config.json", SENTENCEPIECE])
    print(f"identity {hf_files.identity(directory, CONFIG)}")


if __name__ == "__main__":
    app.run(main)
