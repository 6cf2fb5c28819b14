"""Random damage to JSON and to safetensors files, for fuzzing what reads them."""

import copy
import json
import random
import struct
from typing import Any

STRANGE = (
    None, True, False, 0, 1, -1, 2, 3.5, -0.5, 1e300, float("nan"), float("inf"), 10**9, 2**31,
    2**63, 10**30, 10**400, "", "x", "../x", "/dev/zero", "a\0b", "\ud800", "\x1b[2J", "x" * 3000,
    "base", "embedded", "1:1", [], [1], [[]], [None], ["a", 1], [8] * 300, {}, {"a": 1},
    {"kind": "x"}, {"kind": []}, {"": None}, {"../../x": {}},
)  # fmt: skip


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value below `value`."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in items:
        found.append((*path, key))
        if isinstance(below, (dict, list)):
            found += places(below, (*path, key))
    return found


def mutate_json(data: bytes, draw: random.Random) -> bytes:
    """One to three values of another kind, names lost or changed, values exchanged or nested."""
    content = json.loads(data)
    if draw.random() < 0.15:
        return mutate_bytes(data, draw)
    for _ in range(draw.randint(1, 3)):
        found = places(content)
        if not found:
            break
        *groups, last = draw.choice(found)
        node = content
        for key in groups:
            node = node[key]
        match draw.randrange(6):
            case 0 | 1 | 2:
                node[last] = copy.deepcopy(draw.choice(STRANGE))
            case 3:
                del node[last]
            case 4:
                if isinstance(node, dict):
                    name = draw.choice([name for name in STRANGE if isinstance(name, str)])
                    node[name] = node.pop(last)
                else:
                    node.append(node[last])
            case 5:
                node[last] = draw.choice(([node[last]], {"a": node[last]}, str(node[last])))
    if draw.random() < 0.05:
        return draw.choice((json.dumps([content]), "null", "3", '"x"', "[" * 50_000)).encode()
    return json.dumps(content).encode()


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """Flipped bits, cuts, runs of zeros, pieces moved, nothing at all."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not changed:
            break
        place, length = draw.randrange(len(changed)), draw.randint(1, 40)
        match draw.randrange(7):
            case 0 | 1:
                changed[place] ^= 1 << draw.randrange(8)
            case 2:
                del changed[place:]
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place : place + length] = bytes(len(changed[place : place + length]))
            case 5:
                other = draw.randrange(len(changed))
                changed[place:place] = changed[other : other + length]
            case 6:
                changed[draw.randrange(min(64, len(changed)))] = draw.randrange(256)
    return b"" if draw.random() < 0.02 else bytes(changed)


def mutate_safetensors(data: bytes, draw: random.Random) -> bytes:
    """Bytes changed anywhere, or entries of the header changed in a way that fits JSON."""
    if draw.random() < 0.4:
        return mutate_bytes(data, draw)
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    for _ in range(draw.randint(1, 2)):
        name = draw.choice([name for name in header if name != "__metadata__"])
        entry = header[name]
        match draw.randrange(6):
            case 0:
                entry["dtype"] = draw.choice(
                    ("I8", "U8", "F8_E4M3", "F8_E5M2", "BF16", "F16", "F32", "F64", "I16", "BOOL",
                     "F4", "C64", "XX", None)
                )  # fmt: skip
            case 1:
                entry["shape"] = draw.choice(
                    ([], [0], [1], [-1], [2**63 - 1, 2**63 - 1], entry["shape"][::-1], None, ["a"])
                )
            case 2:
                start, stop = entry["data_offsets"]
                entry["data_offsets"] = draw.choice(
                    ([0, stop], [stop, start], [start, 2**62], [start, start], [start], None)
                )
            case 3:
                header[draw.choice(("", "a", "head", "a/b", "\x1b[2J", "x/" * 40, "é"))] = (
                    header.pop(name)
                )
            case 4:
                del header[name]
            case 5:
                other = draw.choice([name for name in header if name != "__metadata__"])
                header[name], header[other] = header[other], header[name]
        if not any(name != "__metadata__" for name in header):
            break
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]
