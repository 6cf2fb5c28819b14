"""Parses the text of a compiled program (HLO): computations, instructions, shapes."""

from __future__ import annotations

import dataclasses
import math
import re

_ITEM_SIZES = {"token": 0, "opaque": 0, "pred": 1, "c64": 8, "c128": 16}


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of a program.

    Attributes:
      dtype, dims: as written, such as "bf16" and (8, 128).
      bytes: without padding.
      padded_bytes: with the padding of its layout.
      in_memory: whether it is in main memory, not in an on-chip buffer.
    """

    dtype: str
    dims: tuple[int, ...]
    bytes: int
    padded_bytes: int
    in_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `argument` is the number in its parentheses, if any."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    argument: int | None
    attributes: str
    is_root: bool

    def called(self, *keys: str) -> list[str]:
        """The computations named by attributes such as `body=` or `branch_computations=`."""
        names = []
        for key in keys:
            match = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
            if match:
                names += re.findall(r"[\w.\-]+", match[1])
        return names


def read_shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type, such as "(f32[8,128]{1,0:T(8,128)}, u32[])"."""
    shapes = []
    for dtype, dims, layout in re.findall(
        r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", re.sub(r"/\*.*?\*/", "", text)
    ):
        extents = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
        # Sub-byte types are packed.
        size = _item_bits(dtype) * math.prod(extents)
        padded = _item_bits(dtype) * math.prod(_padded(extents, layout))
        in_memory = not re.search(r"S\([1-9]\d*\)", layout)
        shapes.append(Shape(dtype, extents, -(-size // 8), -(-padded // 8), in_memory))
    return tuple(shapes)


def _item_bits(dtype: str) -> int:
    if dtype in _ITEM_SIZES:
        return 8 * _ITEM_SIZES[dtype]
    return int(re.search(r"\d+", dtype)[0])


def _padded(dims: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The extents after padding to whole tiles, such as the (8,128) of "{1,0:T(8,128)(2,1)}"."""
    match = re.match(r"\{([\d,]*):T\(([\d,]+)\)", layout)
    if match is None or not dims:
        return dims
    order = [int(axis) for axis in match[1].split(",") if axis]
    tile = [int(extent) for extent in match[2].split(",")]
    padded = list(dims)
    # A tile may have fewer axes than the array.
    for axis, extent in zip(order, reversed(tile), strict=False):
        padded[axis] = -(-dims[axis] // extent) * extent
    return tuple(padded)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Computations by name, each with its instructions by name; and the name of the entry one."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if line[:1] not in (" ", "", "}"):
            match = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
            if match:
                current = match[2]
                computations[current] = {}
                entry = current if match[1] else entry
        elif current and line.startswith("  "):
            instruction = _parse_instruction(line)
            if instruction:
                computations[current][instruction.name] = instruction
    return computations, entry


def _parse_instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if match is None:
        return None
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type_text, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name=match[2],
        shapes=read_shapes(type_text),
        opcode=rest[:opening],
        # Each operand is "%name"; some dumps put its type in front.
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        argument=int(inside) if inside.isdigit() else None,
        attributes=rest[closing + 1 :],
        is_root=bool(match[1]),
    )


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)
