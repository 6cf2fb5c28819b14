"""Mutated directories of text encoders: each loads and encodes, or gives one UserError.

    export PYTHONPATH=.:tests:tests/data HF_HUB_OFFLINE=1 JAX_PLATFORMS=cpu
    python tests/text/encoder_fuzz.py 2000

Prints the outcomes and the resident memory; any other exception with the number of the case.
"""

import collections
import functools
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from fuzz import resident
from mutations import mutate_bytes, mutate_json, mutate_safetensors

from imagen_jax.config import TextConfig
from imagen_jax.errors import UserError
from imagen_jax.text import t5_load
from imagen_jax.text.encoder import EMBEDDED, load_encoder
from imagen_jax.text.t5 import T5Config

# Longer and no message of a command would be read.
LONGEST_MESSAGE = 1000
# A case that asks for more is an error, before it takes the memory of others.
MEMORY = 6 * 2**30


def write_seeds(folder: Path) -> dict[str, Path]:
    """Tiny whole directories: a T5 with spiece.model, one with tokenizer.json, and a CLIP."""
    from test_clip import write_clip
    from test_t5 import random_params
    from transformers import T5Tokenizer

    def write_t5(name: str, vocab_size: int, feed_forward: str) -> Path:
        (folder / name).mkdir()
        config = T5Config(
            vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
            feed_forward=feed_forward,
        )  # fmt: skip
        t5_load.save_params(folder / name, config, random_params(config))
        return folder / name

    t5 = write_t5("t5", 2048, "gated-gelu")
    shutil.copy(EMBEDDED["embedded"] / "spiece.model", t5)
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    vocab += [("▁" + word, -2.0) for word in ("a", "red", "circle")]
    vocab += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz<>/"]
    fast = write_t5("fast", len(vocab), "relu")
    T5Tokenizer(vocab=vocab, extra_ids=0).save_pretrained(fast)
    clip = folder / "clip"
    clip.mkdir()
    write_clip(clip)
    return {"t5": t5, "fast": fast, "clip": clip}


def damage(directory: Path, draw: random.Random) -> str:
    """Changes one or two files. Returns their names."""
    names = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        path = draw.choice(sorted(directory.iterdir()))
        names.append(path.name)
        kind = draw.randrange(20)
        if kind == 0:
            path.unlink()
        elif kind == 1:
            other = draw.choice(sorted(directory.iterdir()))
            if other.is_file() and path.is_file():
                shutil.copyfile(other, path) if other != path else None
        elif kind == 2:
            path.unlink()
            make = draw.choice((os.mkdir, os.mkfifo, functools.partial(os.symlink, "/dev/zero")))
            make(path)
        elif not path.is_file():
            continue
        else:
            mutate = {".json": mutate_json, ".safetensors": mutate_safetensors}
            changed = mutate.get(path.suffix, mutate_bytes)
            try:
                path.write_bytes(changed(path.read_bytes(), draw))
            except (ValueError, IndexError, AttributeError, TypeError, KeyError, struct.error):
                path.write_bytes(mutate_bytes(path.read_bytes(), draw))  # damaged already
    return ", ".join(names)


def try_directory(directory: Path) -> str:
    """ "loads" or "UserError"."""
    try:
        encoder = load_encoder(TextConfig(encoder=str(directory), max_length=8))
        text = encoder.encode_captions(["a red circle \N{FOX FACE}", ""])
        assert np.asarray(text.tokens).shape == (2, 8, encoder.dim)
    except UserError as error:
        assert len(str(error)) < LONGEST_MESSAGE, error
        assert str(error).isprintable(), error
        return "UserError"
    return "loads"


def run(count: int, seed: int, folder: Path, every: int = 200) -> dict:
    """Tries `count` directories. Returns the outcomes, and the memory in bytes over the run."""
    (folder / "seeds").mkdir()
    seeds = write_seeds(folder / "seeds")
    outcomes: collections.Counter[str] = collections.Counter()
    memory, start = [], time.monotonic()
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        directory = folder / "case"
        shutil.copytree(draw.choice(list(seeds.values())), directory)
        names = damage(directory, draw)
        try:
            outcomes[try_directory(directory)] += 1
        except Exception as error:
            outcomes[f"{type(error).__name__}: {error}"[:200]] += 1
            print(f"case {number} of seed {seed}: {names}: {error!r}"[:300], flush=True)
        shutil.rmtree(directory)
        if (number + 1) % max(count // 20, 1) == 0:
            memory.append(resident())
        if (number + 1) % every == 0:
            seconds = time.monotonic() - start
            print(f"{number + 1:,} in {seconds:.0f} s, {resident() / 1e6:.0f} MB", flush=True)
    return {"outcomes": dict(outcomes), "memory": memory}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as name:
        result = run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(name))
    print(json.dumps(result))
