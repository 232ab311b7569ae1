"""Arrays as files of weights keep them: numbers in a storage, and views of it.

Nothing is taken on trust: sizes are compared with the bytes that are there, and an entry that is
no plain array raises an error that says what it is, once its values are asked for.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import ml_dtypes
import numpy as np

_FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
# Types that become float32, which holds each of their values.
WIDENED = {name: np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", *_FLOAT8)}
_PLAIN = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
# PyTorch's names, which are NumPy's and those of ml_dtypes.
DTYPES = WIDENED | {name: np.dtype(name) for name in (*_PLAIN, "uint16", "uint32", "uint64")}


class Unreadable(ValueError):
    """Raised where an entry or a file cannot be read; the text is a clause that says why."""


class Stored(Protocol):
    """An entry of a file that is an array, or claims to be one."""

    @property
    def rank(self) -> int:
        """Return how many dimensions the entry claims to have."""

    def array(self) -> np.ndarray:
        """Return the values; raises Unreadable where they cannot be read exactly."""


@dataclasses.dataclass(frozen=True)
class Odd:
    """A tensor that is no plain array: sparse, quantized, without values.

    Attributes:
        what: its kind in words, as 'a sparse tensor'.
    """

    what: str
    rank: int = 0

    def array(self) -> np.ndarray:
        """Raise Unreadable: there are no plain values."""
        raise Unreadable(f"is {self.what}, which is not read here")


def widened(values: np.ndarray) -> np.ndarray:
    """Return `values`, as float32 where they are of the types in `WIDENED`."""
    return values.astype(np.float32) if values.dtype.name in WIDENED else values


@dataclasses.dataclass
class Plain:
    """A NumPy array out of a pickle.

    Attributes:
        values: as they are stored; None until the pickle gives them.
        odd: its kind in words where its type is none of numbers.
    """

    values: np.ndarray | None = None
    odd: str = ""

    @property
    def rank(self) -> int:
        """Return how many dimensions the array has."""
        return 0 if self.values is None else self.values.ndim

    def fill(self, shape: Any, dtype: np.dtype | str, content: Any, order: str = "C") -> None:
        """Take the bytes `content` as the values.

        A `dtype` that is text says what the values are instead of numbers.

        Raises:
            Unreadable: the bytes are not as many as `shape` and `dtype` ask for.
        """
        if isinstance(dtype, str):
            self.odd = f"an array of {dtype}"
            return
        content = content.encode("latin1") if isinstance(content, str) else content
        shape, size = _whole_numbers(shape), len(content)
        if _count(shape) * dtype.itemsize != size:
            raise Unreadable(f"an array of {shape} {dtype} has {size:,} bytes")
        self.values = np.frombuffer(content, dtype).reshape(
            shape, order="F" if order == "F" else "C"
        )

    def array(self) -> np.ndarray:
        """Return the values; raises Unreadable where there are none."""
        if self.odd or self.values is None:
            raise Unreadable(f"is {self.odd or 'an array without values'}, which is not read here")
        native = self.values.dtype.newbyteorder("=")
        return widened(self.values.astype(native, copy=False))


@dataclasses.dataclass
class Storage:
    """A row of numbers of which tensors are views.

    Attributes:
        key: its name in the file.
        dtype: of the numbers; None: bytes, whose type each tensor says; text: a type that is not
            read.
        length: how many numbers the pickle says there are, or bytes where `dtype` is None.
        nbytes: the same in bytes.
        content: gives the bytes; None until the file says where they lie.
        big_endian: whether the highest byte of a number stands first.
    """

    key: str
    dtype: np.dtype | str | None
    length: int
    nbytes: int
    content: Callable[[], bytes] | None = None
    big_endian: bool = False

    @functools.cached_property
    def _bytes(self) -> bytes:
        if self.content is None:
            raise Unreadable(f"is a view of the storage {self.key}, which is not in the file")
        content = self.content()
        if len(content) != self.nbytes:
            raise Unreadable(
                f"is a view of the storage {self.key}, which must have {self.nbytes:,} bytes and "
                f"has {len(content):,}"
            )
        return content

    @functools.cached_property
    def _read(self) -> dict[np.dtype, np.ndarray]:
        return {}

    def numbers(self, dtype: np.dtype) -> np.ndarray:
        """Return all numbers as `dtype`, then `widened`; made once for all tensors of a storage."""
        if dtype not in self._read:
            whole = len(self._bytes) // dtype.itemsize * dtype.itemsize
            content = self._bytes[:whole] if whole < len(self._bytes) else self._bytes
            values = np.frombuffer(content, dtype)
            swapped = self.big_endian and dtype.itemsize > 1
            self._read[dtype] = widened(values.byteswap() if swapped else values)
        return self._read[dtype]


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor: numbers of `storage` from `offset` on, `strides` apart in each dimension."""

    storage: Storage
    dtype: np.dtype | str | None
    offset: Any
    shape: Any
    strides: Any

    @property
    def rank(self) -> int:
        """Return how many dimensions the tensor has."""
        return len(self.shape) if isinstance(self.shape, tuple | list) else 0

    def array(self) -> np.ndarray:
        """Return the values, which share the storage's memory.

        Raises:
            Unreadable: its type is not read, or it reaches beyond the storage, or it repeats so
                few numbers so often that whoever copies it would take memory for what is not in
                the file.
        """
        dtype = self.dtype or self.storage.dtype
        if not isinstance(dtype, np.dtype):
            raise Unreadable(f"is of the type {dtype or 'bytes'}, which is not read here")
        shape, strides = _whole_numbers(self.shape), _whole_numbers(self.strides)
        (offset,), numbers = _whole_numbers((self.offset,)), self.storage.numbers(dtype)
        if len(shape) != len(strides) or len(shape) > 32:
            raise Unreadable(f"has shape {shape} and strides {strides}")
        if 0 in shape:
            return np.empty(shape, numbers.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if last >= len(numbers) or _count(shape) > max(len(numbers), 1 << 16):
            raise Unreadable(
                f"has shape {shape}, strides {strides} and offset {offset}: its storage has "
                f"{len(numbers):,} numbers"
            )
        steps = tuple(step * numbers.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _whole_numbers(values: Any) -> tuple[int, ...]:
    """Return `values` as a tuple of whole numbers.

    Raises:
        Unreadable: one is no whole number from 0 to 2**40.
    """
    values = (values,) if isinstance(values, int) else values
    if not isinstance(values, tuple | list) or not all(
        type(value) is int and 0 <= value <= 1 << 40 for value in values
    ):
        raise Unreadable(
            "has a shape, strides or an offset that are no whole numbers of a sane size"
        )
    return tuple(values)
