"""Mutated pictures, tars and folders: each is read or refused, and memory does not grow.

    python tests/data/fuzz.py 10000

Prints the number of outcomes and the resident memory. Any exception but UserError for a whole set
and BadItem for an item ends the run.
"""

import collections
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import layouts
import numpy as np
from PIL import Image

from imagen_jax.config import DataConfig
from imagen_jax.data.images import decode_image
from imagen_jax.data.open import load_source
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

# Percentage of cases that are tars, and of those that are folders.
TARS, FOLDERS = 10, 20


def seeds() -> list[bytes]:
    """Whole pictures of every format and mode."""
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 256, (6, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    rgb = Image.fromarray(smooth)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = rgb.convert("RGBA")
    rgba.putalpha(120)
    found = [layouts.encoded(rgb, kind) for kind in ("PNG", "BMP", "TIFF", "PPM", "WEBP", "AVIF")]
    found += [
        layouts.encoded(rgb, "JPEG", exif=exif),
        layouts.encoded(rgb, "JPEG", progressive=True),
        layouts.encoded(rgb.convert("CMYK"), "JPEG"),
        layouts.encoded(rgb.convert("L"), "JPEG"),
        layouts.encoded(rgba, "PNG"),
        layouts.encoded(rgba, "WEBP", lossless=True),
        layouts.encoded(rgb.quantize(16), "PNG", transparency=3),
        layouts.encoded(Image.fromarray(rng.integers(0, 65536, (9, 9), np.uint16)), "PNG"),
        layouts.encoded(rgb, "TIFF", compression="tiff_lzw"),
        layouts.encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
        layouts.encoded(Image.new("RGB", (1, 1)), "PNG"),
        layouts.encoded(rgb.convert("1"), "PNG"),
    ]
    return found


def mutate(data: bytes, draw: random.Random) -> bytes:
    """One to four changes: flipped bits, cuts, runs of zeros, pieces moved, numbers enlarged."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not changed:
            break
        place = draw.randrange(len(changed))
        length = draw.randint(1, 40)
        match draw.randrange(7):
            case 0:
                changed[place] ^= 1 << draw.randrange(8)
            case 1:
                del changed[place:]
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place : place + length] = bytes(len(changed[place : place + length]))
            case 4:
                other = draw.randrange(len(changed))
                changed[place:place] = changed[other : other + length]
            case 5:
                changed[place : place + 4] = draw.choice((b"\xff" * 4, b"\x00\x00\xff\xff"))
            case 6:
                # Headers are at the start of a file.
                changed[draw.randrange(min(64, len(changed)))] = draw.randrange(256)
    return bytes(changed)


def try_picture(data: bytes) -> str:
    try:
        image = decode_image(data, 16)
    except BadItem as error:
        return error.kind
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
    return "read"


def whole_tar(pictures: list[bytes], folder: Path) -> bytes:
    files = []
    for i, data in enumerate(pictures):
        files += [(f"{i}.png", data), (f"{i}.txt", f"caption {i}".encode())]
        files.append((f"{i}.json", json.dumps({"caption": str(i)}).encode()))
    layouts.write_tar(folder / "seed.tar", files)
    data = (folder / "seed.tar").read_bytes()
    (folder / "seed.tar").unlink()
    return data


def try_tar(data: bytes, folder: Path, draw: random.Random) -> collections.Counter[str]:
    path = folder / "x.tar"
    path.write_bytes(data)
    return try_set(DataConfig(source="webdataset", path=str(path), **fields(draw)))


def fields(draw: random.Random) -> dict:
    """Settings that need the text, the JSON or both."""
    return draw.choice(
        (
            {},
            {"caption_fields": ("txt", "caption")},
            {"caption_fields": ("deep/text",), "score_field": "score"},
            {"score_field": "score", "min_score": 0.5},
            {"captions": "none"},
        )
    )


def try_set(config: DataConfig) -> collections.Counter[str]:
    """Opens a set and reads all its items."""
    outcomes: collections.Counter[str] = collections.Counter()
    try:
        source = load_source(config, "train", 16)
    except UserError:
        return collections.Counter({"set refused": 1})
    for index in range(len(source)):
        try:
            item = source.item(index)
            for caption in item.captions:
                assert (caption or config.captions == "none") and "\0" not in caption
                caption.encode()  # whole characters only
            outcomes["read"] += 1
        except BadItem as error:
            outcomes[error.kind] += 1
    return outcomes


def folder_files() -> dict[str, bytes]:
    """The texts of a folder of pictures, in several encodings."""
    entry = {"caption": ["a", "\u4eac b"], "deep": {"text": "c"}, "score": 0.7}
    lines = [{"file_name": f"{i}.png", "text": f"line {i}", "score": i} for i in range(4)]
    lines += [{"file_name": "sub/4.png", **entry}, {"file_name": "1.png", "caption": "again"}]
    listing = "\n".join(map(json.dumps, lines))
    return {
        "0.txt": b"a plain caption\n",
        "1.txt": "caf\xe9 \u4eac \U0001f34e".encode("utf-16"),
        "2.txt": "caf\xe9".encode("latin-1"),
        "2.json": json.dumps(entry).encode(),
        "3.json": json.dumps(entry).encode("utf-16"),
        "5.json": json.dumps({"captions": {"text": ["x", "y"]}}).encode(),
        "metadata.jsonl": listing.encode(),
        "sub/metadata.jsonl": listing.encode("utf-16"),
    }


def try_folder(folder: Path, draw: random.Random) -> collections.Counter[str]:
    """Mutates one to three of the texts of a folder; hostile ones take the place of some."""
    files = folder_files()
    for name in draw.sample(sorted(files), draw.randint(1, 3)):
        files[name] = mutate(files[name], draw)
        if draw.random() < 0.1:
            files[name] = draw.choice((b"[" * 20_000, b'{"caption": ' * 300, b"9" * 5000, b""))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return try_set(DataConfig(source="folder", path=str(folder), **fields(draw)))


def resident() -> int:
    """Bytes of memory that the process holds (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def run(count: int, seed: int = 0, every: int = 500) -> dict:
    """Tries `count` mutations. Returns their outcomes, and the memory in bytes over the run."""
    pictures = seeds()
    outcomes: dict[str, collections.Counter[str]] = {
        "pictures": collections.Counter(),
        "items of tars": collections.Counter(),
        "items of folders": collections.Counter(),
    }
    memory, start = [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tar = whole_tar(pictures, folder)
        texts = folder / "texts"
        (texts / "sub").mkdir(parents=True)
        for i in range(6):
            (texts / ("sub" if i == 4 else "") / f"{i}.png").write_bytes(pictures[i])
        for number in range(count):
            draw = random.Random(f"{seed}/{number}")
            if number % 100 < TARS:
                # Some tars are two that were concatenated.
                data = mutate(tar, draw) + (tar if draw.random() < 0.2 else b"")
                outcomes["items of tars"].update(try_tar(data, folder, draw))
            elif number % 100 < TARS + FOLDERS:
                outcomes["items of folders"].update(try_folder(texts, draw))
            else:
                outcomes["pictures"][try_picture(mutate(draw.choice(pictures), draw))] += 1
            if (number + 1) % max(count // 20, 1) == 0:
                memory.append(resident())
            if (number + 1) % every == 0:
                print(
                    f"{number + 1:,} in {time.monotonic() - start:.0f} s, "
                    f"{resident() / 1e6:.0f} MB",
                    flush=True,
                )
    return {"outcomes": {k: dict(v) for k, v in outcomes.items()}, "memory": memory}


if __name__ == "__main__":
    import contextlib
    import io
    import logging

    logging.disable()  # what is left out of each set
    out = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()):  # progress of indexing
        result = run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(json.dumps(result, indent=1), file=out)
