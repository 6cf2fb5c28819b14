"""Malformed exports: each loads and is exported again, or gives one UserError.

    export PYTHONPATH=.:tests:tests/data:tests/weights HF_HUB_OFFLINE=1 JAX_PLATFORMS=cpu
    python tests/weights/export_fuzz.py 1000

Tries that many random ones, after values of wrong types in the place of every value of config.json.
Prints the outcomes and the resident memory; any other exception with the number of the case.
"""

import collections
import copy
import functools
import hashlib
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz import resident
from mutations import mutate_bytes, mutate_json, mutate_safetensors, places

from imagen_jax.errors import UserError
from imagen_jax.sampling import Cascade
from imagen_jax.weights.artefact import Artefact, few_images, save_cascade

LONGEST_MESSAGE = 1000
# A case that asks for more is an error, before it takes the memory of others.
MEMORY = 6 * 2**30
WRONG = (None, "x", 5, -1, 10**400, 1.5, True, [], [1], {}, {"x": 1})


def wrong_values(directory: Path) -> Iterator[tuple[str, bytes]]:
    """A config.json for each value in it and each value of another kind in its place."""
    content = json.loads((directory / "config.json").read_bytes())
    for path in places(content):
        for value in WRONG:
            changed = copy.deepcopy(content)
            node = changed
            for key in path[:-1]:
                node = node[key]
            if type(node[path[-1]]) is type(value):
                continue
            node[path[-1]] = value
            yield f"{path} = {value!r}"[:200], json.dumps(changed).encode()


def fix_hashes(directory: Path) -> None:
    """Writes the hashes of the files into config.json, as a stranger would."""
    path = directory / "config.json"
    if not path.is_file():  # but /dev/zero
        return
    try:
        content = json.loads(path.read_bytes())
        for record in content["stages"].values():
            file = directory / record["file"]
            if file.is_file():  # and not /dev/zero
                record["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        path.write_text(json.dumps(content))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # config.json is damaged as well


def damage(directory: Path, draw: random.Random) -> str:
    """Changes one or two files. Returns what was done."""
    files = sorted(directory.iterdir())
    done = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        path = draw.choice(files)
        kind = draw.randrange(12)
        done.append(f"{path.name} {kind}")
        if not path.is_file():
            continue
        data = path.read_bytes()
        if kind == 0:
            os.truncate(path, draw.choice((0, 8, len(data) // 2, len(data) * 1000)))
        elif kind == 1:  # exchanged
            other = draw.choice(files)
            if other.is_file():
                path.write_bytes(other.read_bytes())
                other.write_bytes(data)
        elif kind == 2:
            path.unlink()
            if draw.random() < 0.8:
                device = functools.partial(os.symlink, "/dev/zero")
                circle = functools.partial(os.symlink, path.name)
                draw.choice((os.mkdir, os.mkfifo, device, circle))(path)
        else:
            mutate = mutate_json if path.suffix == ".json" else mutate_safetensors
            try:
                path.write_bytes(mutate(data, draw))
            except (ValueError, IndexError, AttributeError, TypeError, KeyError, struct.error):
                path.write_bytes(mutate_bytes(data, draw))  # damaged already
            if draw.random() < 0.8:
                fix_hashes(directory)
    return ", ".join(done)


def try_export(directory: Path) -> str:
    """ "loads" or "UserError"."""
    try:
        cascade = Cascade.from_directory(directory)
        for name, stage in cascade.artefact.stages.items():
            cascade.shapes([name], "1:1")
            few_images(stage.images_seen, stage.num_parameters)
        save_cascade(directory / "again", cascade.artefact)
    except UserError as error:
        assert len(str(error)) < LONGEST_MESSAGE, error
        assert str(error).isprintable(), error
        return "UserError"
    outside = {path.name for path in directory.parent.iterdir()} - {directory.name, "whole"}
    assert not outside, outside
    return "loads"


def run(artefact: Artefact, count: int, seed: int, folder: Path, every_key: int = 1) -> dict:
    """Tries every `every_key`-th wrong value, then `count` random cases.

    Returns the outcomes, and the memory in bytes over the run.
    """
    whole = folder / "whole"
    save_cascade(whole, artefact)
    cases: list[tuple[str, Callable[[Path], str | None]]] = [
        (name, lambda directory, data=data: (directory / "config.json").write_bytes(data) and None)
        for name, data in list(wrong_values(whole))[::every_key]
    ]
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        cases.append((f"case {number}", functools.partial(damage, draw=draw)))
    outcomes: collections.Counter[str] = collections.Counter()
    memory, start = [], time.monotonic()
    directory = folder / "case"
    for number, (name, change) in enumerate(cases, 1):
        shutil.copytree(whole, directory)
        done = change(directory)
        try:
            outcomes[try_export(directory)] += 1
        except Exception as error:
            outcomes[f"{type(error).__name__}: {error}"[:200]] += 1
            print(f"{name} of seed {seed}: {done}: {error!r}"[:400], flush=True)
        shutil.rmtree(directory)
        if number % max(len(cases) // 20, 1) == 0:
            memory.append(resident())
        if number % 500 == 0:
            seconds = time.monotonic() - start
            print(f"{number:,} in {seconds:.0f} s, {resident() / 1e6:.0f} MB", flush=True)
    return {"cases": len(cases), "outcomes": dict(outcomes), "memory": memory}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from tiny_cascade import CONFIG, make_artefact

    from imagen_jax.text.encoder import load_encoder

    with tempfile.TemporaryDirectory() as name:
        seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
        result = run(make_artefact(load_encoder(CONFIG.text)), int(sys.argv[1]), seed, Path(name))
    print(json.dumps(result))
