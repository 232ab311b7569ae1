"""Reads and writes files of weights as names and NumPy arrays, without running a pickle's code.

Files are written whole or not at all.
"""

import dataclasses
import importlib
import importlib.util
import io
import json
import os
import pickle
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from moco_jax.base import files, packages
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.weights import dictionaries, stored, torch_files
from moco_jax.weights.pickles import Refused

Arrays = dict[str, np.ndarray]

TORCH = (".pth.tar", ".pth", ".pt", ".bin", ".ckpt")
ENDINGS = (*TORCH, ".safetensors", ".pkl")
# How many times the file's size its entries may take in memory: eight bits become 32, and a
# compressed zip may have zeros.
MOST = 4 * torch_files.SWELLING
LONGEST = 1000  # characters of an entry's name, which messages repeat
# What safetensors calls the types, and what `stored.DTYPES` does.
_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def ending(path: str) -> str:
    """Return which of `ENDINGS` the file name has.

    Raises:
        UserError: it has none of them.
    """
    for known in ENDINGS:
        if str(path).endswith(known):
            return known
    raise UserError(f"{path} has no known ending; one of {', '.join(ENDINGS)} works")


def torch() -> Any:
    """Import PyTorch; errors are those of `library`."""
    return library("torch", "torch")


def library(module: str, extra: str) -> Any:
    """Import the optional package `module`, which the extra `extra` installs.

    Raises:
        UserError: it is not installed, or is PyTorch's and would crash because TensorFlow came
            into the process first.
    """
    package = module.partition(".")[0]
    # What torchvision brings along crashes after TensorFlow; timm brings the same.
    first = package if package == "torch" else "torchvision"
    late = extra == "torch" and first not in sys.modules and "tensorflow" in sys.modules
    if late and importlib.util.find_spec(first):
        raise UserError(
            f"{first} and TensorFlow work in one process only in this order: import {first} before"
            " moco_jax"
        )
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"the package {package} is needed for this: {packages.how_to_have([package])}"
        ) from error


@dataclasses.dataclass(frozen=True)
class Contents:
    """The arrays in a file of weights, and remarks on them.

    Attributes:
        arrays: names to arrays.
        remarks: sentences on which of several dictionaries was taken, and what is left out.
    """

    arrays: Arrays
    remarks: tuple[str, ...] = ()


def read(path: str) -> Arrays:
    """Read the arrays in the file `path`, names to arrays; errors are those of `contents`."""
    return contents(path).arrays


def contents(path: str) -> Contents:
    """Read the file of weights `path`.

    Nothing in a pickle is run, and no library that made one is needed. The dictionary of weights
    is found among epochs, optimizers and arguments (`dictionaries.USUAL`). bfloat16 and
    eight-bit floating point become float32, exactly. Arrays may share memory and be read-only.

    Raises:
        UserError: no such file, a damaged one (a zip's checksums are compared), one that asks
            for code to be run, one that holds no weights, or an entry of a type that has no
            exact values here.
    """
    kind, name = ending(path), printable(path)
    try:
        with files.open_to_read(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if kind == ".safetensors":
                return Contents(_arrays(name, _safetensors(file.read()), size))
            entries, remarks = dictionaries.weights(torch_files.tree(file, size))
            return Contents(_arrays(name, entries, size), tuple(remarks))
    except UserError:
        raise
    except dictionaries.NoWeights as error:
        raise UserError(f"{name} {_line(error)}") from error
    except Refused as error:
        raise UserError(
            f"{name} is refused: it asks for {printable(str(error))} to be run, and weights need "
            "nothing of the kind"
        ) from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or _line(error)}") from error
    except Exception as error:  # whatever bytes that are no such file lead to
        raise UserError(f"{name} is damaged: {_line(error)}{_looks(path)}") from error


def _arrays(name: str, entries: Mapping[str, stored.Stored], size: int) -> Arrays:
    """Read the values of the entries `entries` in the file called `name`.

    Raises:
        UserError: an entry has none, or all of them together take more memory than a file of
            `size` bytes accounts for.
    """
    arrays, taken = {}, 0
    for entry, value in entries.items():
        if len(entry) > LONGEST:
            raise UserError(f"{name} is refused: an entry has a name of {len(entry):,} characters")
        try:
            arrays[entry] = value.array()
        except stored.Unreadable as error:
            raise UserError(
                f"{name} is refused: its entry {printable(entry)} {_line(error)}"
            ) from error
        taken += arrays[entry].nbytes if arrays[entry].base is None else 0
        if taken > MOST * size:
            raise UserError(
                f"{name} is refused: its entries take {MOST} times the memory that they have in "
                "the file"
            )
    return arrays


def _safetensors(content: bytes) -> dict[str, stored.Stored]:
    """Read the entries of a safetensors file, ordered by name; its library checks the sizes."""
    arrays: dict[str, stored.Stored] = {}
    entries = library("safetensors", "safetensors").deserialize(content)
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    json.loads(header, object_pairs_hook=_once)
    for entry, about in entries:
        dtype, shape = _SAFETENSORS.get(about["dtype"]), about["shape"]
        if dtype is None:
            arrays[entry] = stored.Odd(f"of the type {about['dtype']}", len(shape))
        else:
            plain = arrays[entry] = stored.Plain()
            plain.fill(shape, stored.DTYPES[dtype].newbyteorder("<"), about["data"])
    return dict(sorted(arrays.items()))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dictionary from a JSON object, refusing duplicate names.

    The library would take the last of several.
    """
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise stored.Unreadable("its header has a name twice")
    return unique


def _line(error: object) -> str:
    """Return the first line of an error's text."""
    return printable((str(error).strip().splitlines() or ["it ends too early"])[0])[:300]


def _looks(path: str) -> str:
    """Return the end of the message on a damaged file: what it plainly is, and what to do."""
    with files.open_to_read(path) as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "; it is a pointer of Git LFS, and git lfs pull brings the file"
    text = start.decode("utf-8", "replace")[:20]
    begins = f"; it begins with {text!r}" if text and text.isprintable() else ""
    return f"{begins}; copy or download it again"


class _Pickler(pickle.Pickler):
    """Pickles arrays under names that every version of NumPy knows."""

    def reducer_override(self, obj: Any) -> Any:
        """Describe an array by its shape, its type and its bytes."""
        if type(obj) is np.ndarray:
            return np.ndarray, (obj.shape, obj.dtype.str, bytearray(obj.tobytes()))
        return NotImplemented


def write(path: str, arrays: Mapping[str, np.ndarray], around: Mapping[str, Any]) -> None:
    """Write `arrays` to the file `path`, in the format that its ending names.

    Args:
        path: with one of `ENDINGS`.
        arrays: names to arrays.
        around: what the file holds beside them, with the place of the arrays marked by None;
            empty: only the arrays. Not for safetensors, which have no place for it.

    Raises:
        UserError: a package is missing, or the place cannot be written.
    """
    kind, out = ending(path), io.BytesIO()
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    if kind == ".safetensors":
        out.write(library("safetensors.numpy", "safetensors").save(arrays, {"format": "pt"}))
    elif kind == ".pkl":
        _Pickler(out, 4).dump(_within(around, arrays))
    else:
        own = torch()
        tensors = {name: own.tensor(array) for name, array in arrays.items()}
        own.save(_within(around, tensors), out)
    try:
        files.write(files.absolute(path), out.getvalue())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or _line(error)}") from error


def _within(around: Mapping[str, Any], inner: Any) -> Any:
    return {key: inner if value is None else value for key, value in around.items()} or inner
