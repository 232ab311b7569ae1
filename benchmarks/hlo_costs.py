"""Counts a compiled program's operations and bytes from its text, instruction by instruction.

The rules are those of XLA's own cost analysis, which `compiled.cost_analysis()` gives as totals,
without saying where they are. A loop's body counts once, as it does there.

    python -m benchmarks.hlo_costs SUPERVISED.txt MOCO.txt  # as `tpu_compile --out` keeps them
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from absl import app

from benchmarks.collectives import BYTES
from moco_jax.base.console import table


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# These are an operation an element; exponential, rsqrt, tanh and their like are none to XLA.
ELEMENTWISE = _names(
    "abs add and bitcast-convert ceil clamp compare convert divide floor is-finite maximum minimum"
    " multiply negate not or popcnt reduce-precision remainder round-nearest-afz"
    " round-nearest-even select shift-left shift-right-arithmetic shift-right-logical sign subtract"
    " xor"
)
# These move nothing. What an asynchronous copy moves stands at its start.
FREE = _names(
    "parameter constant get-tuple-element bitcast tuple after-all add-dependency copy-done"
    " slice-done custom-call partition-id"
)
CALLS = ("call", "while", "conditional", "async-start", "call-start")
IMMEDIATE = 8  # a fused constant of more elements is read from memory
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


class Cost(NamedTuple):
    """What one instruction costs.

    Attributes:
        instruction: which.
        kind: what it does, a key of `KINDS`.
        part: the part of a training step that it belongs to, one of `PARTS`.
        flops: operations.
        read, written: bytes.
        main: bytes of both that are in main memory, not in a TPU's on the chip.
        counted: bytes that XLA's cost analysis counts: both, and those of an asynchronous copy
            several times.
    """

    instruction: Instruction
    kind: str
    part: str
    flops: int
    read: int
    written: int
    main: int
    counted: int


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


class Program:
    """A compiled program, read from its text.

    Attributes:
        computations: by name.
        entry: the one that runs.
    """

    def __init__(self, text: str) -> None:
        """Read `text`, as `compiled.as_text()` gives it."""
        self.computations: dict[str, Computation] = {}
        self.entry = Computation()
        self._flops: dict[str, int] = {}
        self._opcodes: dict[str, set[str]] = {}
        current: Computation | None = None
        for line in text.splitlines():
            if head := _HEAD.match(line):
                current = self.computations[head[2]] = Computation()
                self.entry = current if head[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif current is not None and (start := _LINE.match(line)):
                instruction = _instruction(line[start.end() :], start[2], bool(start[1]))
                current[instruction.name] = instruction

    def costs(self) -> list[Cost]:
        """Return the costs of all instructions that run, those in loops once."""
        return list(self._costs(self.entry))

    def _costs(self, computation: Computation) -> Iterator[Cost]:
        for instruction in computation.values():
            if instruction.opcode in CALLS:
                for name in instruction.called:
                    yield from self._costs(self.computations[name])
            elif instruction.opcode not in FREE:
                yield self._cost(computation, instruction)

    def _cost(self, computation: Computation, instruction: Instruction) -> Cost:
        operands = [computation[name] for name in instruction.operands]
        read = [(o.bytes, _on_chip(o)) for o in operands]
        written = [(a.bytes, a.on_chip) for a in instruction.arrays]
        opcode = instruction.opcode
        if opcode == "fusion":
            inside = self.computations[instruction.attribute("calls")]
            read = [
                (self._parameter_read(inside, p), _on_chip(o))
                for p, o in zip(inside.parameters, operands, strict=True)
            ]
            read += [(c.bytes, False) for c in inside.values() if _large_constant(c)]
            written = [
                (self._output(inside, i, a), a.on_chip) for i, a in enumerate(instruction.arrays)
            ]
        elif opcode in ("slice", "dynamic-slice", "gather"):
            read[0] = written[0][0], read[0][1]
            read = read[:2]  # of the start, one number counts
        elif opcode == "dynamic-update-slice":
            written = [(read[1][0], written[0][1])]
            read = read[1:3]
        repeated = 0
        if opcode in ("copy-start", "slice-start"):
            to, source, *_ = instruction.arrays
            if opcode == "slice-start":
                to, source = source, to
            read, written = [(to.bytes, source.on_chip)], [(to.bytes, to.on_chip)]
            # The start's result holds what is read and what is written; the end's, that again.
            repeated = to.bytes * (2 if opcode == "copy-start" else 1)
        ends = sum(size for size, _ in read), sum(size for size, _ in written)
        return Cost(
            instruction,
            self.kind(instruction),
            _part(_origin(computation, instruction)),
            self.flops(computation, instruction),
            *ends,
            sum(size for size, on_chip in read + written if not on_chip),
            sum(ends) + repeated,
        )

    def _output(self, inside: Computation, number: int, array: Array) -> int:
        """Return the bytes that a fusion writes of its result: of an update, the updated part."""
        root = inside.root
        if root.opcode == "tuple":
            root = inside[root.operands[number]]
        if root.opcode == "dynamic-update-slice":
            return inside[root.operands[1]].bytes
        return array.bytes

    def _parameter_read(self, inside: Computation, parameter: Instruction) -> int:
        """Return the bytes that a fusion reads of a parameter: slices, or all of it, once."""
        size, whole = 0, False
        for user in inside.users[parameter.name]:
            first = user.operands[0] == parameter.name
            if user.opcode == "fusion":
                nested = self.computations[user.attribute("calls")]
                for number, name in enumerate(user.operands):
                    if name == parameter.name:
                        size += self._parameter_read(nested, nested.parameters[number])
            elif user.opcode == "slice" or (user.opcode == "dynamic-slice" and first):
                size += user.bytes
            elif user.opcode == "dynamic-update-slice" and first:
                pass  # the result takes its place
            elif user.opcode in ("broadcast", "reshape"):
                size += parameter.bytes
            elif not whole:
                whole = True
                size += parameter.bytes
        return size

    def flops(self, computation: Computation, instruction: Instruction) -> int:
        """Return the operations of an instruction, and of what it calls."""
        opcode, out = instruction.opcode, instruction.arrays[0] if instruction.arrays else None
        if out is None:
            return 0
        if opcode in ELEMENTWISE:
            return out.elements
        if opcode in ("all-reduce", "all-reduce-start"):
            return sum(a.elements for a in instruction.arrays)
        if opcode in ("fusion", *CALLS):
            return sum(self._flops_of(name) for name in instruction.called)
        operands = [computation[name].arrays for name in instruction.operands]
        if opcode == "dot":
            wide = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
            dims = [int(n) for n in wide[1].split(",") if n] if wide else []
            return 2 * out.elements * math.prod(operands[0][0].shape[d] for d in dims)
        if opcode == "convolution":
            return convolution_flops(instruction, operands[0][0], operands[1][0])
        if opcode == "reduce":
            each = self._flops_of(instruction.attribute("to_apply"))
            return each * (operands[0][0].elements - out.elements)
        size = math.prod(int(n) for n in instruction.attribute("size").split("x") if n)
        if opcode == "reduce-window":
            return self._flops_of(instruction.attribute("to_apply")) * (size - 1) * out.elements
        if opcode == "select-and-scatter":
            select = self._flops_of(instruction.attribute("select")) * (size - 1)
            scatter = self._flops_of(instruction.attribute("scatter"))
            return (select + scatter) * operands[1][0].elements
        if opcode == "sort":
            elements = operands[0][0].elements
            return elements * math.ceil(math.log2(max(elements, 1)))
        if opcode == "scatter":
            return self._flops_of(instruction.attribute("to_apply")) * operands[-1][0].elements
        return 0

    def _flops_of(self, name: str) -> int:
        if name not in self._flops:
            found = self.computations[name]
            self._flops[name] = sum(self.flops(found, one) for one in found.values())
        return self._flops[name]

    def opcodes(self, instruction: Instruction) -> set[str]:
        """Return the opcodes of an instruction and, in a fusion, of all that it holds."""
        if instruction.opcode != "fusion":
            return {instruction.opcode}
        return self._opcodes_of(instruction.attribute("calls"))

    def _opcodes_of(self, name: str) -> set[str]:
        if name not in self._opcodes:
            held = map(self.opcodes, self.computations[name].values())
            self._opcodes[name] = set().union(*held)
        return self._opcodes[name]

    def kind(self, instruction: Instruction) -> str:
        """Name what an instruction does, by the heaviest of the opcodes that it holds."""
        held = self.opcodes(instruction)
        return next((kind for kind, opcodes in KINDS.items() if held & opcodes), "elementwise")


# From the heaviest; an instruction is of the first kind that it holds an opcode of.
KINDS = {
    "convolution, product": {"convolution", "dot"},
    "all-reduce": {"all-reduce", "all-reduce-start", "all-reduce-done"},
    "other collectives": {
        f"{name}{end}"
        for name in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")
        for end in ("", "-start", "-done")
    },
    "max-pool": {"reduce-window"},
    "max-pool, gradient": {"select-and-scatter"},
    "sort, gather, scatter": {"sort", "gather", "scatter"},
    "reduction": {"reduce"},
    "slice updated": {"dynamic-update-slice"},
    "elementwise": set(ELEMENTWISE) | {"exponential", "rsqrt", "sqrt", "tanh", "log", "erf"},
    "moved between memories": {"copy-start", "slice-start"},
    "copy, transposition": {"copy", "transpose"},
    "slice, padding": {"slice", "dynamic-slice", "pad", "concatenate", "reverse"},
}
PARTS = ("keys, forward", "queries, forward", "loss", "backward", "all else", "unnamed")
HEADER = ["", "instructions", "GFLOP", "GB read", "GB written", "GB counted", "more"]
HEADER += ["GB in main memory", "more"]


def rows(base: list[Cost], ours: list[Cost], by: str) -> list[list[str]]:
    """Compare two programs, 'base, ours' in each cell, by 'kind' or by 'part'.

    The columns are those of `HEADER`. Behind each number of bytes stands the difference, as a part
    of all that `base` moves; these add up to what `ours` moves more.
    """
    names = [n for n in [*KINDS, *PARTS] if any(getattr(c, by) == n for c in base + ours)]
    return [_row(name, base, ours, by) for name in names] + [_row("all", base, ours, "")]


def _row(name: str, base: list[Cost], ours: list[Cost], by: str) -> list[str]:
    found = [[c for c in costs if not by or getattr(c, by) == name] for costs in (base, ours)]

    def pair(field: str, digits: int) -> str:
        sums = [sum(getattr(c, field) for c in costs) / 1e9 for costs in found]
        return ", ".join(f"{n:.{digits}f}" for n in sums)

    def more(field: str) -> str:
        sums = [sum(getattr(c, field) for c in costs) for costs in (*found, base)]
        return f"{100 * (sums[1] - sums[0]) / sums[2]:+.2f} %"

    counts = ", ".join(str(len(costs)) for costs in found)
    row = [name, counts, pair("flops", 1), pair("read", 2), pair("written", 2)]
    return [*row, pair("counted", 2), more("counted"), pair("main", 2), more("main")]


def convolution_flops(instruction: Instruction, left: Array, right: Array) -> int:
    """Return two operations for each product that is no product with padding."""
    inputs, _, outputs = re.split("_|->", instruction.attribute("dim_labels"))
    (out,) = instruction.arrays
    positions = 1
    window = {
        key: instruction.attribute(key) for key in ("size", "stride", "lhs_dilate", "rhs_dilate")
    }
    padding = instruction.attribute("pad")
    for axis in range(len(inputs) - 2):

        def of(key: str, axis: int = axis) -> int:
            return int(window[key].split("x")[axis]) if window[key] else 1

        before = int(padding.split("x")[axis].split("_")[0]) if padding else 0
        length = left.shape[inputs.index(str(axis))]
        positions *= valid_positions(
            length,
            out.shape[outputs.index(str(axis))],
            of("size"),
            of("stride"),
            before,
            of("lhs_dilate"),
            of("rhs_dilate"),
        )
    groups = [instruction.attribute(k) for k in ("feature_group_count", "batch_group_count")]
    channels, batch = left.shape[inputs.index("f")], left.shape[inputs.index("b")]
    made = out.shape[outputs.index("f")]
    per_group = math.prod(int(g) for g in groups if g)
    return 2 * channels * batch // per_group * made * positions


@functools.cache
def valid_positions(
    length: int, out: int, taps: int, stride: int, before: int, spread: int, dilation: int
) -> int:
    """Count pairs of a place of the result and a tap of the kernel that meet an input.

    Args:
        length: of the input.
        out: of the result.
        taps: of the kernel.
        stride: of the kernel.
        before: padding before the input.
        spread: from one input to the next.
        dilation: from one tap to the next.
    """
    places = (o * stride - before + k * dilation for o in range(out) for k in range(taps))
    return sum(p % spread == 0 and 0 <= p // spread < length for p in places)


def _part(op_name: str) -> str:
    """Name the part of a training step that an operation of the JAX program belongs to."""
    encoder = "Encoder" in op_name
    if not op_name:
        return "unnamed"
    if "transpose(" in op_name:
        return "backward"
    if "jvp(" in op_name:
        return "queries, forward" if encoder else "loss"
    return "keys, forward" if encoder else "all else"


def _origin(computation: Computation, instruction: Instruction) -> str:
    """Return the path of the JAX operation that an instruction serves.

    A copy has none. One to the chip serves what reads it there, one from the chip is of what made
    the array; the way there leads over instructions without a path.
    """
    from_chip = instruction.opcode.endswith("-start") and not instruction.arrays[0].on_chip
    seen, waiting = {instruction.name}, [instruction]
    for one in waiting:
        if one.op_name:
            return one.op_name
        near = [computation[n] for n in one.operands] if from_chip else computation.users[one.name]
        waiting += [n for n in near if n.name not in seen]
        seen |= {n.name for n in near}
    return ""


def _large_constant(instruction: Instruction) -> bool:
    return instruction.opcode == "constant" and instruction.arrays[0].elements > IMMEDIATE


def _on_chip(instruction: Instruction) -> bool:
    return bool(instruction.arrays) and all(a.on_chip for a in instruction.arrays)


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


def show(base: str, ours: str) -> None:
    """Print what `ours`, a program's text, costs beside `base`, by kind and by part of the step."""
    costs = Program(base).costs(), Program(ours).costs()
    for by in ("kind", "part"):
        print(f"\nby {by}, supervised and MoCo")
        print(table(HEADER, rows(*costs, by)))


def main(argv: list[str]) -> None:
    """Compare the programs of two files."""
    texts = []
    for name in argv[1:3]:
        with open(name) as file:
            texts.append(file.read())
    show(*texts)


if __name__ == "__main__":
    app.run(main)
