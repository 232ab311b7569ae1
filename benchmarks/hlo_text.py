"""Reads a compiled program's text: its computations, their instructions, and what each gives."""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

from benchmarks.collectives import BYTES

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")


class Array(NamedTuple):
    """An array's type and shape, and the memory it lies in.

    Attributes:
        dtype: XLA's short name, as 'f32'.
        shape: its dimensions.
        layout: XLA's, as '3,0,2,1:T(8,128)(2,1)S(1)': dimensions, the fastest first; the tile
            that they are padded to; and the memory, S(1) for the one on a TPU's chip.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def on_chip(self) -> bool:
        """Whether it lies in a TPU's memory on the chip, not in the main one."""
        return "S(1)" in self.layout

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size, with what the layout's first tile is padded by."""
        order, _, tiles = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiles)
        fastest = [int(n) for n in order.split(",") if n]
        sides = list(self.shape)
        if tile:
            for dimension, side in zip(fastest, reversed(tile[1].split(",")), strict=False):
                sides[dimension] = -(-sides[dimension] // int(side)) * int(side)
        return math.prod(sides) * BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
        name: unique in its computation.
        opcode: as 'fusion'.
        arrays: what it gives: one array, or all those of a tuple.
        operands: names.
        rest: the line after the opcode.
        root: whether its value is the computation's.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool

    def attribute(self, name: str) -> str:
        """Return an attribute, as 3x3 of `size=3x3`; '' where there is none."""
        found = re.search(rf"\b{name}=%?([^\s,{{}}]+)", self.rest)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """Path of the JAX operation that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def bytes(self) -> int:
        """Size of all that it gives."""
        return sum(array.bytes for array in self.arrays)

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        names = [self.attribute(k) for k in ("calls", "to_apply", "body", "condition")]
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        return [n for n in names if n] + (_NAME.findall(branches[1]) if branches else [])


class Computation(dict[str, Instruction]):
    """Instructions by name, in the order of the text."""

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose value is the computation's."""
        return next(i for i in self.values() if i.root)

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Parameters in the order of their numbers."""
        found = [i for i in self.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(re.match(r"\((\d+)\)", i.rest)[1]))  # type: ignore[index]

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions that read each instruction."""
        found: dict[str, list[Instruction]] = {name: [] for name in self}
        for instruction in self.values():
            for name in dict.fromkeys(instruction.operands):
                found[name].append(instruction)
        return found


def read(text: str) -> tuple[dict[str, Computation], Computation]:
    """Read `compiled.as_text()`: return computations by name, and the one that runs."""
    computations: dict[str, Computation] = {}
    entry = Computation()
    current: Computation | None = None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations[head[2]] = Computation()
            entry = current if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (start := _LINE.match(line)):
            instruction = _instruction(line[start.end() :], start[2], bool(start[1]))
            current[instruction.name] = instruction
    return computations, entry


def _closing(text: str, start: int) -> int:
    """Return the place after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    raise ValueError(f"no end of {text[start:]}")


def _instruction(text: str, name: str, root: bool) -> Instruction:
    """Read an instruction from the line after its name and equals sign."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    arrays = tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n), layout)
        for dtype, dims, layout in _ARRAY.findall(text[:end])
    )
    opcode, rest = text[end:].lstrip().split("(", 1)
    rest = f"({rest}"
    operands = () if opcode in ("constant", "parameter") else rest[: _closing(rest, 0)]
    return Instruction(name, opcode, arrays, tuple(_NAME.findall(operands or "")), rest, root)
