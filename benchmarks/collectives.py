"""Reads the collectives of a compiled program from its text: what crosses between devices."""

import math
import re
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "collective-broadcast",
)
BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_LINE = re.compile(
    r"= (?P<shapes>\(?.*?\)?) (?P<kind>" + "|".join(KINDS) + r")(?P<start>-start)?\(", re.ASCII
)
# The compiler writes what goes to other slices of TPU chips as a transfer through their hosts.
_BETWEEN_SLICES = re.compile(
    r"= (?P<shapes>\(.*?\)) send\(.*_xla_megascale_transfer_type=\"(?P<kind>\w+)\"", re.ASCII
)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One array that one collective hands to each device.

    Attributes:
        kind: 'all-reduce', 'all-gather', 'all-to-all', 'collective-permute', ...
        dtype: XLA's short name, as 'f32'.
        shape: of the array on one device.
        line: the program's text, for messages.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    line: str

    @property
    def bytes(self) -> int:
        """Size of the array on one device."""
        return math.prod(self.shape) * BYTES[self.dtype]


def read(text: str) -> list[Collective]:
    """Return all collectives in a compiled program's text, one entry for each array.

    An all-to-all that is written with one operand for each peer gives its share once, as one
    array: the parts are added up along a new first axis.
    """
    collectives = []
    for line in text.splitlines():
        match = _LINE.search(line)
        if not match:
            continue
        shapes = _shapes(match["shapes"])
        if match["start"]:  # operands come first, then results, then tokens of the runtime
            shapes = [s for s in shapes if s != ("u32", ())]
            shapes = shapes[len(shapes) // 2 :]
        if match["kind"] == "all-to-all" and len(shapes) > 1 and len(set(shapes)) == 1:
            shapes = [(shapes[0][0], (len(shapes), *shapes[0][1]))]
        collectives += [Collective(match["kind"], d, s, line.strip()[:200]) for d, s in shapes]
    return collectives


def read_between_slices(text: str) -> list[Collective]:
    """Return what each device sends to other slices, one entry for each array; else an empty list.

    An all-reduce over two slices is written in three steps: each slice adds up and divides the sum
    over its devices, which `read` finds as a reduce-scatter, each device sends its part, which is
    found here, and each slice gathers the parts, which `read` finds as an all-gather.
    """
    sent = []
    for line in text.splitlines():
        match = _BETWEEN_SLICES.search(line)
        if match:
            shapes = [s for s in _shapes(match["shapes"]) if s != ("u32", ())]
            kind = match["kind"].lower().replace("_", "-")
            sent += [Collective(kind, d, s, line.strip()[:200]) for d, s in shapes]
    return sent


def _shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Read the types and shapes of arrays."""
    return [
        (dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in _SHAPE.findall(text)
        if dtype in BYTES
    ]
