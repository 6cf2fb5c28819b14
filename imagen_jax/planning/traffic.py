"""What a compiled program sends between chips and moves through memory.

XLA's own cost analysis counts the body of a loop once. Here everything inside a loop is multiplied
by its trip count. A conditional counts as its largest branch.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re

from imagen_jax.planning.hlo import Instruction, Shape, parse

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Opcode of traffic between slices, which goes through the hosts.
SEND = "send"

# Opcodes that move no data.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "while",
    "conditional",
    "call",
    "async-start",
    "opt-barrier",
    "partition-id",
    "replica-id",
    "recv",
    SEND,
}
_SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one run of a program.

    Attributes:
      kind: "all-gather", ...; "send" for what goes to other slices.
      count: number of collectives that are run.
      bytes: bytes that each device sends for them, with ring algorithms.
    """

    kind: str
    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Traffic of one device in one run of a program.

    Attributes:
      collectives: one for each kind.
      memory_bytes: bytes read from and written to main memory.
      unknown_loops: number of loops with an unknown trip count; their bodies count once.
    """

    collectives: tuple[Collective, ...]
    memory_bytes: int
    unknown_loops: int

    def sent(self, *, between_slices: bool) -> int:
        """Bytes that a device sends within its slice, or to other slices."""
        return sum(c.bytes for c in self.collectives if (c.kind == SEND) == between_slices)


def read_traffic(text: str, num_devices: int) -> Traffic:
    """Reads `compiled.as_text()` of a program for `num_devices`."""
    return _Reader(text, num_devices).traffic()


class _Reader:
    """Adds up the traffic of a program, computation by computation."""

    def __init__(self, text: str, num_devices: int):
        self.computations, self.entry = parse(text)
        self.num_devices = num_devices
        self.unknown_loops: set[str] = set()

    def traffic(self) -> Traffic:
        counts, sizes, memory = self.cost(self.entry)
        collectives = tuple(
            Collective(kind, counts[kind], round(sizes[kind])) for kind in sorted(counts)
        )
        return Traffic(collectives, memory, len(self.unknown_loops))

    @functools.cache  # noqa: B019  (a reader lives for one call)
    def cost(self, name: str) -> tuple[collections.Counter, collections.Counter, int]:
        """Counts and bytes of collectives by kind, and memory bytes, of one run of `name`."""
        counts: collections.Counter = collections.Counter()
        sizes: collections.Counter = collections.Counter()
        memory = 0

        def add(cost, times: int = 1, *, memory_too: bool = True) -> None:
            nonlocal memory
            for kind, count in cost[0].items():
                counts[kind] += count * times
                sizes[kind] += cost[1][kind] * times
            memory += cost[2] * times if memory_too else 0

        for instruction in self.computations[name].values():
            opcode = instruction.opcode
            kind = opcode.removesuffix("-start")
            if kind in COLLECTIVES or opcode == SEND:
                kind, size = self.sent(name, instruction)
                counts[kind] += 1
                sizes[kind] += size
            if opcode == "while":
                trips = self.trip_count(instruction)
                for called in instruction.called("body", "condition"):
                    add(self.cost(called), trips)
            elif opcode == "conditional":
                branches = instruction.called(
                    "branch_computations", "true_computation", "false_computation"
                )
                add(max((self.cost(b) for b in branches), key=_size))
            elif opcode in ("call", "async-start"):
                for called in instruction.called("to_apply", "calls"):
                    add(self.cost(called))
            elif opcode == "fusion":
                # Inside a fusion only collectives move data off the chip.
                for called in instruction.called("calls"):
                    add(self.cost(called), memory_too=False)
            memory += self.memory(name, instruction)
        return counts, sizes, memory

    # --- collectives --------------------------------------------------------------------------

    def sent(self, computation: str, instruction: Instruction) -> tuple[str, float]:
        """The kind of a collective and the bytes that a device sends for it in a ring."""
        if instruction.opcode == SEND:
            # Operands: data, token.
            return SEND, self.operand_shapes(computation, instruction)[0].bytes
        kind = instruction.opcode.removesuffix("-start")
        size = sum(shape.bytes for shape in self.operand_shapes(computation, instruction))
        n = self.group_size(instruction)
        # The TPU compiler writes a reduce-scatter as an all-reduce followed by a slice.
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        factor = {
            "all-gather": n - 1,
            "all-reduce": 2 * (n - 1) / n,
            "reduce-scatter": (n - 1) / n,
            "all-to-all": (n - 1) / n,
            "ragged-all-to-all": (n - 1) / n,
        }.get(kind, 1)
        return kind, size * factor

    def group_size(self, instruction: Instruction) -> int:
        """The number of devices in one group of a collective."""
        match = re.search(
            r"replica_groups=(\{\{[\d,]*\}|\[[\d,]+\]<=|mesh\[.*?\][^{]*\{[^}]*\})",
            instruction.attributes,
        )
        if match is None:
            return self.num_devices
        groups = match[1]
        if groups.startswith("{{"):
            return groups.count(",") + 1
        if groups.startswith("["):
            return int(re.findall(r"\d+", groups.split("]")[0])[-1])
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups))
        return math.prod(int(sizes[a]) for a in re.findall(r"'(\w+)'", groups.split("{")[-1]))

    # --- loops --------------------------------------------------------------------------------

    def trip_count(self, loop: Instruction) -> int:
        """The trip count of a loop: noted by the compiler, or N of the condition `counter < N`."""
        match = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if match:
            return int(match[1])
        condition = self.computations[loop.called("condition")[0]]
        root = next(i for i in condition.values() if i.is_root)
        if root.opcode == "compare" and "direction=LT" in root.attributes:
            bound = condition.get(root.operands[1])
            if bound is not None and bound.opcode == "constant" and bound.argument is not None:
                return bound.argument
        self.unknown_loops.add(loop.name)
        return 1

    # --- memory -------------------------------------------------------------------------------

    def operand_shapes(self, computation: str, instruction: Instruction) -> list[Shape]:
        """The shapes of all operands."""
        table = self.computations[computation]
        return [s for name in instruction.operands if name in table for s in table[name].shapes]

    def memory(self, computation: str, instruction: Instruction) -> int:
        """Bytes that one instruction outside of a fusion reads and writes."""
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0
        table = self.computations[computation]
        operands = [table[name] for name in instruction.operands if name in table]
        if opcode in _SLICES:
            return 2 * _in_memory(instruction.shapes)
        if opcode == "dynamic-update-slice":
            return 2 * _in_memory(operands[1].shapes)
        if opcode == "fusion":
            called = instruction.called("calls")[0]
            read = sum(
                self.read_by_fusion(called, index, operand.shapes)
                for index, operand in enumerate(operands)
            )
            return read + self.written_by_fusion(called, instruction)
        shapes = instruction.shapes
        if opcode.endswith("-start"):
            # A tuple of source, destination and flags; the source is counted as an operand.
            shapes = shapes[:1] if opcode == "copy-start" else shapes[1:2]
        return _in_memory(shapes) + sum(_in_memory(operand.shapes) for operand in operands)

    def read_by_fusion(self, computation: str, index: int, shapes: tuple[Shape, ...]) -> int:
        """Bytes that a fusion reads of its operand `index`: all, or only the slices it uses."""
        whole = _in_memory(shapes)
        if not whole:
            return 0
        total = 0
        for user, place in self.parameter_users(computation)[index]:
            if user.opcode in _SLICES and place == 0:
                total += sum(shape.padded_bytes for shape in user.shapes)
            elif user.opcode == "dynamic-update-slice" and place == 0:
                continue  # written in place
            elif user.opcode == "fusion":
                total += self.read_by_fusion(user.called("calls")[0], place, shapes)
            else:
                return whole
        return min(total, whole)

    @functools.cache  # noqa: B019
    def parameter_users(self, computation: str) -> dict[int, list[tuple[Instruction, int]]]:
        """By parameter number, the instructions that use it and as which operand."""
        table = self.computations[computation]
        numbers = {i.name: i.argument for i in table.values() if i.opcode == "parameter"}
        users: dict[int, list[tuple[Instruction, int]]] = collections.defaultdict(list)
        for instruction in table.values():
            for place, operand in enumerate(instruction.operands):
                if operand in numbers:
                    users[numbers[operand]].append((instruction, place))
        return users

    def written_by_fusion(self, computation: str, fusion: Instruction) -> int:
        """Bytes that a fusion writes: all its results, or the updated part of those in place."""
        table = self.computations[computation]
        root = next(i for i in table.values() if i.is_root)
        results = [root]
        if root.opcode == "tuple":
            results = [table[name] for name in root.operands]
        if len(results) != len(fusion.shapes):
            return _in_memory(fusion.shapes)
        total = 0
        for result, shape in zip(results, fusion.shapes, strict=True):
            if result.opcode == "dynamic-update-slice" and result.operands[1] in table:
                update = table[result.operands[1]].shapes
                total += sum(s.padded_bytes for s in update) if shape.in_memory else 0
            else:
                total += _in_memory((shape,))
        return total


def _in_memory(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.padded_bytes for shape in shapes if shape.in_memory)


def _size(cost: tuple) -> float:
    return sum(cost[1].values()) + cost[2]
