"""Counts a compiled program's operations and bytes from its text, instruction by instruction.

The rules are those of XLA's own cost analysis, which `compiled.cost_analysis()` gives as totals,
without saying where they are. A loop's body counts once, as it does there.

    python -m benchmarks.hlo_costs SUPERVISED.txt MOCO.txt  # as `tpu_compile --out` keeps them
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from absl import app

from benchmarks import hlo_text
from benchmarks.hlo_text import Array, Computation, Instruction
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


class Program:
    """A compiled program, read from its text.

    Attributes:
        computations: by name.
        entry: the one that runs.
    """

    def __init__(self, text: str) -> None:
        """Read `text`, as `compiled.as_text()` gives it."""
        self.computations, self.entry = hlo_text.read(text)
        self._flops: dict[str, int] = {}
        self._opcodes: dict[str, set[str]] = {}

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
            _part(instruction, _origin(computation, instruction)),
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
PARTS = ("images", "keys, forward", "queries, forward", "loss", "backward")
PARTS += ("sums over chips", "update")
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


def _part(instruction: Instruction, op_name: str) -> str:
    """Name the part of a training step that an instruction belongs to, by the JAX operation."""
    encoder = "Encoder" in op_name
    if not encoder and any(len(a.shape) > 3 and a.shape[-1] == 3 for a in instruction.arrays):
        return "images"
    if "all-reduce" in instruction.opcode:
        return "sums over chips"
    if "transpose(" in op_name:
        return "backward"
    if "jvp(" in op_name:
        return "queries, forward" if encoder else "loss"
    return "keys, forward" if encoder else "update"


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
