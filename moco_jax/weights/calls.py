"""Decides what a call in a pickle of weights becomes: array, tensor or harmless container.

Every other call is refused. No call is made: names are looked up in the tables below and nowhere
else. Arrays and tensors come out as the classes of `stored.py`.
"""

import sys
from collections.abc import Callable
from typing import Any

from moco_jax.weights.pickles import Named, Numbers, Refused, StandIn, dtype_of, key_of
from moco_jax.weights.stored import DTYPES, Odd, Plain, Unreadable, View

# Classes of harmless data: no weights depend on their values.
INERT = frozenset(
    {
        "argparse.Namespace",
        "types.SimpleNamespace",
        "builtins.object",
        "builtins.int",
        "builtins.float",
        "builtins.str",
        "builtins.bool",
        "builtins.complex",
        "builtins.range",
        "builtins.xrange",
        "builtins.slice",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib.PurePath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "collections.deque",
        "datetime.date",
        "datetime.datetime",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        "functools.partial",
        "numpy.random._pickle.__bit_generator_ctor",
        "numpy.random._pickle.__generator_ctor",
        "numpy.random._pickle.__randomstate_ctor",
        "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
        "torch.device",
        "torch.serialization._get_layout",
        "torch.torch_version.TorchVersion",
    }
)
_NO_ENUMERATIONS = sys.stdlib_module_names | {"torch", "numpy", "pip", "setuptools"}
_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")


def _items(items: Any = ()) -> Any:
    """Return a list, tuple or set as it came: a copy could be asked for ten thousand times."""
    if not isinstance(items, list | tuple | dict):
        raise Unreadable("it has a container without items")
    return items if items else []


def _mapping(pairs: Any = None) -> dict:
    if isinstance(pairs, dict):
        return pairs
    return {key_of(key): value for key, value in pairs or ()}


def _counted(_factory: Any = None, pairs: Any = None) -> dict:
    return _mapping(pairs)


def _dtype(code: Any, *_: Any) -> Numbers:
    if isinstance(code, Named):  # of ml_dtypes, as 'ml_dtypes.bfloat16'
        return Numbers(code.name.removeprefix("ml_dtypes."))
    return Numbers(str(code).lstrip("<>|="))


def _array(shape: Any, code: Any, content: Any) -> Plain:
    array, numbers = Plain(), _dtype(code)
    numbers.order = ">" if str(code).startswith(">") else "<"
    array.fill(shape, dtype_of(numbers), content)
    return array


def _frombuffer(content: Any, numbers: Any, shape: Any, order: str) -> Plain:
    array = Plain()
    array.fill(shape, dtype_of(numbers), content, order)
    return array


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Any:
    metadata = more[2] if len(more) > 2 else None
    return _view(storage, storage.dtype, offset, shape, strides, metadata)


def _tensor_3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _g: Any,
    _h: Any,
    dtype: Any,
    metadata: Any = None,
) -> Any:
    name = dtype.name.removeprefix("torch.")
    return _view(storage, DTYPES.get(name, name), offset, shape, strides, metadata)


def _view(storage: Any, dtype: Any, offset: Any, shape: Any, strides: Any, metadata: Any) -> Any:
    for mark, what in (("conj", "a conjugated tensor"), ("neg", "a negated tensor")):
        if isinstance(metadata, dict) and metadata.get(mark):
            return Odd(what, len(shape))
    return View(storage, dtype, offset, shape, strides)


def _same(value: Any, *_: Any) -> Any:
    return value


def _of_type(function: Any, of: Any, arguments: Any, _state: Any) -> Any:
    """Rebuild a tensor subclass as a plain tensor where the class adds nothing to the values."""
    if not isinstance(function, Named) or not isinstance(of, Named):
        raise Refused("what-has-no-name")
    if of.name not in _TENSORS or "_from_type" in function.name:
        return Odd(f"a tensor of the class {of.name}")
    return Calls()(function.name, arguments)


def _instance(of: Any, *_: Any) -> StandIn:
    """Stand in for an object that copyreg would make, without a call of its class."""
    name = of.name if isinstance(of, Named) else ""
    return StandIn(name, name in INERT)


_KNOWN: dict[str, Callable[..., Any]] = {
    "builtins.set": _items,
    "builtins.frozenset": _items,
    "builtins.list": _items,
    "builtins.tuple": _items,
    "builtins.dict": _mapping,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _counted,
    "copyreg._reconstructor": _instance,
    "copyreg.__newobj__": _instance,
    "copyreg.__newobj_ex__": _instance,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _array,
    "numpy.core.multiarray._reconstruct": lambda *_: Plain(),
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy.core.multiarray.scalar": lambda *_: StandIn("numpy.generic", True),
    "torch.Size": _items,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_3,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _same,
    "torch._utils._rebuild_device_tensor_from_numpy": _same,
    "torch._tensor._rebuild_from_type_v2": _of_type,
}
_ODD = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
}


class Calls:
    """Evaluates calls in the pickles of one file: `calls(name, arguments)`."""

    def __init__(self) -> None:
        """Start with no text encoded yet."""
        self._encoded: dict[str, bytes] = {}

    def __call__(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Return the array, tensor or container that the call `name(*arguments)` stands for.

        Raises:
            Refused: the call is none of those that weights need.
            Unreadable: its arguments are not those of such a call.
        """
        if name in ("builtins.bytes", "builtins.bytearray", "_codecs.encode"):
            return self._bytes(name, *arguments)
        if name in INERT:
            return StandIn(name, True)
        if name in _KNOWN:
            return _KNOWN[name](*arguments)
        if name.startswith(("torch._utils._rebuild_", "torch._tensor._rebuild_")):
            return Odd(_ODD.get(name, f"a tensor made by {name}"))
        if _is_enumeration(name, arguments):
            return StandIn(name)
        raise Refused(name)

    def _bytes(self, name: str, content: Any = b"", *_: Any) -> bytes:
        if isinstance(content, str):
            # Each text is kept once: a call that names it again takes no more memory.
            if content not in self._encoded:
                self._encoded[content] = content.encode("latin1")
            return self._encoded[content]
        if not isinstance(content, bytes | bytearray):
            asked = f"of {content:,} bytes that" if isinstance(content, int) else "whose content"
            raise Unreadable(f"it asks for a {name.rpartition('.')[2]} {asked} it does not hold")
        return content  # type: ignore[return-value]


def _is_enumeration(name: str, arguments: tuple[Any, ...]) -> bool:
    """Return whether this may be a member of an enumeration: a call of a class with one value."""
    package, last = name.partition(".")[0], name.rpartition(".")[2].lstrip("_")
    plain = len(arguments) == 1 and isinstance(arguments[0], str | int | float)
    return plain and last[:1].isupper() and package not in _NO_ENUMERATIONS
