"""Files of weights: read without running what a pickle asks for, and written whole; names and NumPy arrays on this side."""

import importlib
import importlib.util
import io
import os
import pickle
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from moco_jax import files
from moco_jax.errors import UserError

Arrays = dict[str, np.ndarray]

TORCH = (".pth.tar", ".pth", ".pt", ".bin", ".ckpt")
ENDINGS = (*TORCH, ".safetensors", ".pkl")


def ending(path: str) -> str:
    """Which of `ENDINGS` the file name has; UserError where it has none."""
    for known in ENDINGS:
        if str(path).endswith(known):
            return known
    raise UserError(f"{path} does not say what file it is; known are names in {', '.join(ENDINGS)}")


def torch() -> Any:
    """PyTorch; raises as `library` does."""
    return library("torch", "torch")


def library(module: str, extra: str) -> Any:
    """The module `module`, which the extra `extra` brings.

    Raises:
        UserError: it is not installed, or is PyTorch's and would crash because TensorFlow came into the process first.
    """
    package = module.partition(".")[0]
    # What torchvision brings along crashes after TensorFlow; timm brings the same.
    first = package if package == "torch" else "torchvision"
    late = extra == "torch" and first not in sys.modules and "tensorflow" in sys.modules
    if late and importlib.util.find_spec(first):
        raise UserError(
            f"{first} and TensorFlow work in one process only in this order: import {first} before moco_jax"
        )
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"the package {package} is needed for this: pip install 'moco_jax[{extra}]'"
        ) from error


def read(path: str) -> Arrays:
    """The entries of the file `path`: names to arrays.

    Files of PyTorch are read with `weights_only`, other pickles by a reader that knows arrays and nothing else. What
    lies under 'state_dict' or 'model' is taken where there is such an entry. bfloat16 becomes float32, exactly. Where
    TensorFlow is in this process and PyTorch is not, PyTorch reads in a process of its own.

    Raises:
        UserError: no such file, a damaged one, one that asks for code to be run, or one that holds no weights.
    """
    kind, content = ending(path), _content(path)
    if kind == ".safetensors":
        load = library("safetensors.numpy", "safetensors").load
        try:
            return {name: _array(value) for name, value in sorted(load(content).items())}
        except Exception as error:  # the library has exceptions of its own, and the format's names
            raise UserError(f"{path} is damaged: {_line(error)}") from error
    if kind in TORCH and "tensorflow" in sys.modules and "torch" not in sys.modules:
        return _read_elsewhere(path)
    tree = _read_pickle(path, content) if kind == ".pkl" else _read_torch(path, content)
    for key in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    if not isinstance(tree, Mapping) or not tree:
        raise UserError(f"{path} holds no weights by name")
    strange = [name for name, value in tree.items() if not hasattr(value, "shape")]
    if strange:
        raise UserError(
            f"{path} holds no weights by name: {', '.join(map(str, strange[:5]))} is no array"
        )
    return {str(name): _array(value) for name, value in tree.items()}


def _read_elsewhere(path: str) -> Arrays:
    """What `read` gives in a new process, without TensorFlow."""
    code = "import sys; from moco_jax.weights import files; files.hand_over(*sys.argv[1:])"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "arrays.npz")
        command = [sys.executable, "-c", code, str(path), out]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            raise UserError(done.stderr.strip().splitlines()[-1])
        with np.load(out) as arrays:
            return dict(arrays)


def hand_over(path: str, out: str) -> None:
    """Read `path` and put the entries into the .npz file `out`; what is wrong with it goes to standard error."""
    try:
        np.savez(out, allow_pickle=False, **read(path))
    except UserError as error:
        sys.exit(str(error))


def _content(path: str) -> bytes:
    try:
        return files.absolute(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or _line(error)}") from error


def _array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value.astype(np.float32) if value.dtype.name == "bfloat16" else value
    value = value.detach()
    return (value.float() if value.dtype == torch().bfloat16 else value).numpy()


def _line(error: object) -> str:
    """The first line of what it says."""
    return (str(error).strip().splitlines() or ["it ends too early"])[0]


def _refused(path: str, what: str) -> UserError:
    return UserError(
        f"{path} is refused: it asks for {what} to be run, and weights need nothing of the kind"
    )


def _read_torch(path: str, content: bytes) -> Any:
    own = torch()
    try:
        return own.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of the zip reader, the unpickler, or a tensor that does not fit
        asked = re.search(r"GLOBAL (\S+)|[Uu]nsupported (?:global|class) (\S+)", str(error))
        if asked:
            raise _refused(path, (asked[1] or asked[2]).rstrip(".")) from error
        cut = not zipfile.is_zipfile(io.BytesIO(content))
        why = "it ends too early or is no file of PyTorch" if cut else _line(error)
        raise UserError(f"{path} is damaged: {why}") from error


class _Unpickler(pickle.Unpickler):
    """Knows dictionaries, lists, numbers, text and NumPy arrays; anything else that is named is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Harmless stand-ins of what arrays are made from."""
        root = module.replace("numpy._core", "numpy.core")
        known = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.empty(0),
            ("numpy.core.numeric", "_frombuffer"): _from_bytes,
            ("numpy", "ndarray"): _from_buffer,
            ("numpy", "dtype"): _dtype,
            ("builtins", "bytearray"): bytearray,
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
            ("collections", "OrderedDict"): dict,
        }
        if (root, name) not in known:
            raise LookupError(f"{module}.{name}")
        return known[root, name]


def _dtype(text: str, *flags: bool) -> np.dtype:
    found = np.dtype(text, *flags)
    if found.kind not in "fiub":
        raise ValueError(f"{found} is no type of weights")
    return found


def _from_bytes(content: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(content, _dtype(dtype.str)).reshape(shape, order="F" if order == "F" else "C")  # fmt: skip


def _from_buffer(shape: tuple[int, ...], dtype: str, content: bytes) -> np.ndarray:
    return np.ndarray(shape, _dtype(dtype), content)


def _read_pickle(path: str, content: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except LookupError as error:
        if type(error) is LookupError:
            raise _refused(path, str(error.args[0])) from error
        raise UserError(f"{path} is damaged: {_line(error)}") from error
    except Exception as error:  # whatever bytes that are no pickle lead to
        raise UserError(f"{path} is damaged: {_line(error)}") from error


class _Pickler(pickle.Pickler):
    """Writes arrays under names that every version of NumPy knows."""

    def reducer_override(self, obj: Any) -> Any:
        """How an array is made again: from its shape, its type and its bytes."""
        if type(obj) is np.ndarray:
            return np.ndarray, (obj.shape, obj.dtype.str, bytearray(obj.tobytes()))
        return NotImplemented


def write(path: str, arrays: Mapping[str, np.ndarray], around: Mapping[str, Any]) -> None:
    """Put `arrays` into the file `path`, whose name says which kind.

    Args:
        path: with one of `ENDINGS`.
        arrays: names to arrays.
        around: what the file holds beside them, with the place of the arrays marked by None; empty: only the arrays.
            Not for safetensors, which have no place for it.

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
