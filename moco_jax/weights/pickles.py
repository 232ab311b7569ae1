"""Reads pickles without running anything in them.

The opcodes are parsed by Python's own parser, and become dictionaries, lists, numbers, text and
stand-ins. Nothing is imported, and no memory is taken for what is only claimed.
"""

import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from moco_jax.weights.stored import WIDENED, Plain, Unreadable

STEPS = 2_000_000  # a pickle of weights has some thousands; each may take a hundred bytes of memory


class Refused(Exception):
    """Raised where a pickle asks for something to be run; the text is its name."""


class Named:
    """The name of a class or function, which is never looked up."""

    def __init__(self, name: str):
        """Keep `name`, as 'collections.OrderedDict'."""
        self.name = name


class StandIn(dict):
    """Stands for an object of any class; what a pickle puts into it is read as from a dict.

    Attributes:
        name: of its class.
        known: whether the class is known to be harmless data.
    """

    def __init__(self, name: str, known: bool = False):
        """Start empty."""
        super().__init__()
        self.name, self.known = name, known

    def __repr__(self) -> str:
        """Show the name alone: the content may contain the object itself."""
        return f"<{self.name}>"

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def append(self, item: Any) -> None:
        """Forget `item`: nobody asks for what is in a list of an unknown class."""


class Numbers:
    """The type of an array in a pickle: `code` as 'f4', and `order` of its bytes."""

    def __init__(self, code: str):
        """Assume little-endian, until the pickle says more."""
        self.code, self.order = code, "<"


_MARK = object()
_ATOMS = (str, int, float, bool, bytes, type(None))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,  # members are never looked for, and so need no hash
}
_VALUES = frozenset(
    {
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "FLOAT",
        "BINFLOAT",
    }
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def key_of(key: Any) -> Any:
    """Return `key` if it is cheap to hash, else a stand-in.

    To hash tuples within tuples could take for ever.
    """
    plain = isinstance(key, _ATOMS) or (
        isinstance(key, tuple) and all(isinstance(part, _ATOMS) for part in key)
    )
    return key if plain or isinstance(key, StandIn | Named) else StandIn("key", True)


_OLD = (
    ("__builtin__.", "builtins."),
    ("copy_reg.", "copyreg."),
    ("numpy._core.", "numpy.core."),
    ("pathlib._local.", "pathlib."),
)


def _named(argument: str) -> Named:
    """Return the class or function 'module name', under one name whichever versions wrote it."""
    name = ".".join(argument.rsplit(" ", 1))
    for other, usual in _OLD:
        if name.startswith(other):
            return Named(usual + name.removeprefix(other))
    return Named(name)


def dtype_of(numbers: Any) -> np.dtype | str:
    """Return the dtype that `numbers` describes, or words for it where it holds no numbers.

    Raises:
        Unreadable: it is no type at all.
    """
    if not isinstance(numbers, Numbers):
        raise Unreadable("it has an array without a type")
    if numbers.code in WIDENED:
        return WIDENED[numbers.code]
    if not re.fullmatch(r"[?]|b1|[iu][1248]|f[248]", numbers.code):
        return f"the type {numbers.code[:40]}"
    return np.dtype(numbers.order + numbers.code)


class Machine:
    """Interprets pickles, one after the other."""

    def __init__(
        self,
        call: Callable[[str, tuple[Any, ...]], Any],
        persistent: Callable[[Any], Any] | None = None,
    ):
        """Prepare to read.

        Args:
            call: what becomes of a call of a name with arguments; raises Refused.
            persistent: what stands for an identity that the pickle has from outside; None: there
                is none.
        """
        self._call, self._persistent = call, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], None]] = {
            name.removeprefix("_on_").upper(): getattr(self, name)
            for name in dir(self)
            if name.startswith("_on_")
        }

    def load(self, file: BinaryIO) -> Any:
        """Return the next object in `file`, and leave `file` at its end.

        Raises:
            Refused: something was to be run.
            Exception: of any kind, where it is no pickle.
        """
        self._stack, self._memo = [], {}
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                return self._pop()
            if count > STEPS:
                raise Unreadable(
                    f"its pickle has more than {STEPS:,} steps; weights need thousands"
                )
            self._step(opcode.name, argument)
        raise Unreadable("it ends too early")

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self._stack.append(argument)
        elif name in self._steps:
            self._steps[name](argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            parts = [self._pop() for _ in range(_TUPLES[name])]
            self._stack.append(tuple(reversed(parts)))
        elif name not in ("PROTO", "FRAME"):
            raise Unreadable(f"its pickle has the opcode {name}, which weights do not need")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise Unreadable("its pickle pops from an empty stack")
        return self._stack.pop()

    def _top(self) -> Any:
        self._stack.append(self._pop())
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while place >= 0 and self._stack[place] is not _MARK:
            place -= 1
        if place < 0:
            raise Unreadable("its pickle lacks a mark that an opcode needs")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    # One method for each opcode, of its name; the argument of an opcode without one is None.

    def _on_mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _on_pop(self, _: Any) -> None:
        if not self._stack:
            raise Unreadable("its pickle pops from an empty stack")
        self._stack.pop()

    def _on_pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _on_dup(self, _: Any) -> None:
        self._stack.append(self._top())

    def _on_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    def _on_put(self, place: Any) -> None:
        self._memo[int(place)] = self._top()

    def _on_get(self, place: Any) -> None:
        if int(place) not in self._memo:
            raise Unreadable("its pickle reads a memo entry that it never wrote")
        self._stack.append(self._memo[int(place)])

    def _on_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _on_list(self, _: Any) -> None:
        self._stack.append(self._since_mark())

    def _on_dict(self, _: Any) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._put_pairs(items)

    def _on_setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._put_pairs([key, value])

    def _on_setitems(self, _: Any) -> None:
        self._put_pairs(self._since_mark())

    def _on_append(self, _: Any) -> None:
        self._add([self._pop()])

    def _on_appends(self, _: Any) -> None:
        self._add(self._since_mark())

    def _on_global(self, argument: str) -> None:
        self._stack.append(_named(argument))

    def _on_stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Unreadable("its pickle names a class or function by something other than text")
        self._stack.append(_named(f"{module} {name}"))

    def _on_reduce(self, _: Any) -> None:
        arguments, what = self._pop(), self._pop()
        self._stack.append(self._called(what, arguments))

    def _on_inst(self, argument: str) -> None:
        items = self._since_mark()
        self._stack.append(self._called(_named(argument), tuple(items)))

    def _on_obj(self, _: Any) -> None:
        what, *arguments = self._since_mark()
        self._stack.append(self._called(what, tuple(arguments)))

    def _on_newobj(self, _: Any) -> None:
        arguments, what = self._pop(), self._pop()
        self._stack.append(self._made(what, arguments))

    def _on_newobj_ex(self, _: Any) -> None:
        self._pop()
        self._on_newobj(None)

    def _on_build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Plain):
            _, shape, numbers, fortran, content = state
            target.fill(shape, dtype_of(numbers), content, "F" if fortran else "C")
        elif isinstance(target, Numbers):
            target.order = ">" if state[1] == ">" else "<"

    def _on_persid(self, identity: Any) -> None:
        if self._persistent is None:
            raise Unreadable("its pickle refers to an object outside the file")
        self._stack.append(self._persistent(identity))

    def _on_binpersid(self, _: Any) -> None:
        self._on_persid(self._pop())

    # Opcodes that do the same in another width, or to a set, which is a list here.
    _on_binput = _on_long_binput = _on_put
    _on_binget = _on_long_binget = _on_get
    _on_frozenset, _on_additems = _on_list, _on_appends

    def _put_pairs(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise Unreadable("its pickle sets items of something that is no dictionary")
        for place in range(0, len(items), 2):
            key = key_of(items[place])
            if key in target:
                raise Unreadable(f"it has the name {str(key)[:100]} twice")
            target[key] = items[place + 1]

    def _add(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list | StandIn):
            raise Unreadable("its pickle appends to something that is no list")
        for item in items:
            target.append(item)

    def _called(self, what: Any, arguments: Any) -> Any:
        if not isinstance(what, Named):
            raise Refused("what-has-no-name")
        if not isinstance(arguments, tuple):
            raise Unreadable("its pickle calls something with arguments that are no tuple")
        return self._call(what.name, arguments)

    def _made(self, what: Any, arguments: Any) -> Any:
        """Make an object that a pickle fills without a call: data, whatever its class is."""
        try:
            return self._called(what, arguments)
        except Refused as refused:
            return StandIn(str(refused))
