"""Makes an embedded text encoder from scratch: `python -m tools.embedded_encoder.make --out=DIR`.

Trains a sentencepiece vocabulary and a small T5 v1.1 encoder on template text, and writes a
Hugging Face directory with checksums. Needs the `emoji` package for the names of emoji.

With `--icons=ICONS` (the directory of scripts/fetch_icons.sh) it makes `embedded_icons`, a larger
encoder that also knows the names and styles of these icons.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import random
from pathlib import Path

from absl import app, flags

from imagen_jax.data.builtin.icons.records import IconRecords
from imagen_jax.data.builtin.shapes import captions
from imagen_jax.data.builtin.shapes.captions import Caption
from imagen_jax.text import hf_files, t5_load
from imagen_jax.text.t5 import T5Config
from imagen_jax.text.tokenizer import SENTENCEPIECE, load_tokenizer
from tools.embedded_encoder.corpus import Corpus, object_wording
from tools.embedded_encoder.pretrain import PretrainConfig, pretrain

_OUT = flags.DEFINE_string("out", None, "Directory to write to.", required=True)
_ICONS = flags.DEFINE_string("icons", "", "Icon sets whose names and styles it learns too.")
_STEPS = flags.DEFINE_integer("steps", 0, "Training steps (0: 2600, with --icons 8000).")
_SEED = flags.DEFINE_integer("seed", 0, "Of the corpus, the initialisation and the noise.")

CONFIG = T5Config(
    vocab_size=2048,
    d_model=128,
    d_kv=32,
    d_ff=256,
    num_layers=4,
    num_heads=4,
    feed_forward="gated-gelu",
)
SETTINGS = PretrainConfig()
ICONS_CONFIG = dataclasses.replace(CONFIG, vocab_size=2560, d_model=192, num_heads=6)
# The longest names are longer than the scenes.
ICONS_SETTINGS = PretrainConfig(num_steps=8000, length=32)


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


def icon_names(path: str) -> list[tuple[str, str]]:
    """The concept and the style of every icon below a path, held-out ones included."""
    records = IconRecords(path, None, 64)
    keys = [records.key(index) for index in range(len(records))]
    return [(key.concept, key.style) for key in keys]


def make_tokenizer(directory: Path, corpus: Corpus, vocab_size: int, seed: int) -> None:
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
        vocab_size=vocab_size,
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
    config, settings = (ICONS_CONFIG, ICONS_SETTINGS) if _ICONS.value else (CONFIG, SETTINGS)
    steps = _STEPS.value or settings.num_steps
    settings = dataclasses.replace(settings, num_steps=steps, seed=_SEED.value)
    icons = icon_names(_ICONS.value) if _ICONS.value else []
    corpus = Corpus(shapes_captions(20_000, _SEED.value), icons)
    print(
        f"{len(corpus.names)} names, {len(corpus.styles)} styles, {len(corpus.captions)} captions",
        flush=True,
    )
    make_tokenizer(directory, corpus, config.vocab_size, _SEED.value)
    print(f"vocabulary of {config.vocab_size} pieces written", flush=True)
    tokenizer = load_tokenizer(directory)
    params = pretrain(config, tokenizer, corpus, settings, lambda text: print(text, flush=True))
    t5_load.save_params(directory, config, params, "float16")
    hf_files.write_checksums(directory, ["model.safetensors", "config.json", SENTENCEPIECE])
    print(f"identity {hf_files.identity(directory, config)}")


if __name__ == "__main__":
    app.run(main)
