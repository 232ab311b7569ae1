"""Files of weights: code in them does not run, cut-off files are named, written ones read again."""

import json
import os
import pickle
import subprocess
import sys
import tracemalloc

import ml_dtypes  # noqa: F401  # its types by name
import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.weights import files

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.zeros((), np.int64)}


def written(tmp_path, ending):
    """A file with ARRAYS."""
    if ending == "safetensors":
        pytest.importorskip("safetensors", reason="pip install '.[safetensors]'")
    elif ending != "pkl":
        pytest.importorskip("torch", reason="pip install '.[torch]'")
    path = str(tmp_path / f"weights.{ending}")
    files.write(path, ARRAYS, {"model": None, "by": "me"} if ending == "pkl" else {})
    return path


@pytest.mark.parametrize("ending", ["pth", "pth.tar", "pt", "bin", "safetensors", "pkl"])
def test_what_is_written_is_read(tmp_path, ending):
    found = files.read(written(tmp_path, ending))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("ending", ["pth", "safetensors", "pkl"])
@pytest.mark.parametrize("share", [0, 0.3, 0.95])
def test_a_file_cut_off_is_one_line(tmp_path, ending, share):
    path = written(tmp_path, ending)
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[: int(share * len(content))])
    with pytest.raises(UserError, match="is damaged") as error:
        files.read(path)
    assert "\n" not in str(error.value)


class Evil:
    """A pickle of this makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("ending", ["pth", "old.pth", "pkl"])
def test_a_malicious_pickle_does_nothing(tmp_path, ending):
    path, place = tmp_path / f"weights.{ending}", tmp_path / "made"
    if ending == "pkl":
        path.write_bytes(pickle.dumps({"model": {"a": Evil(place)}}))
    else:
        torch = pytest.importorskip("torch", reason="pip install '.[torch]'")
        evil, zipped = {"state_dict": {"a": Evil(place)}}, ending == "pth"
        torch.save(evil, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"is refused: it asks for \S+ to be run") as error:
        files.read(str(path))
    assert "\n" not in str(error.value)
    assert not place.exists()


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickles_of_plain_numpy_arrays_are_read(tmp_path, protocol):
    """As Detectron2's own tools write them."""
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": ARRAYS, "__author__": "x"}, protocol))
    found = files.read(str(path))
    np.testing.assert_array_equal(found["a.weight"], ARRAYS["a.weight"])
    path.write_bytes(pickle.dumps({"model": {"a": np.array([Evil(tmp_path / "made")])}}, protocol))
    with pytest.raises(UserError, match=r"is refused|is damaged"):
        files.read(str(path))
    assert not (tmp_path / "made").exists()


def test_the_written_pickle_is_plain_python_and_numpy(tmp_path):
    """Any version of NumPy makes writable arrays of it."""
    with open(written(tmp_path, "pkl"), "rb") as file:
        content = file.read()
    found = pickle.loads(content)
    assert found["by"] == "me"
    np.testing.assert_array_equal(found["model"]["a.weight"], ARRAYS["a.weight"])
    assert found["model"]["a.weight"].flags.writeable
    assert b"_core" not in content


def test_bfloat16_becomes_float32(tmp_path):
    torch = pytest.importorskip("torch", reason="pip install '.[torch]'")
    path = str(tmp_path / "weights.pt")
    torch.save({"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, path)
    found = files.read(path)["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1.5, -2.0])


TYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U64": "u8",
    "U32": "u4",
    "U16": "u2",
    "U8": "u1",
    "BOOL": "?",
}


def safetensors(**entries):
    """A file of `entries`, each a type of the format, a shape and bytes, put together by hand."""
    header, data = {}, b""
    for name, (kind, shape, content) in entries.items():
        places = [len(data), len(data) + len(content)]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": places}
        data += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", TYPES)
def test_types_of_safetensors_are_read_exactly(tmp_path, kind, seed):
    """Every one of the 256 or 65,536 patterns of a small type, random ones of a large type."""
    pytest.importorskip("safetensors", reason="pip install '.[safetensors]'")
    dtype = np.dtype(TYPES[kind])
    rng = np.random.default_rng(seed)
    bits = {1: np.arange(256, dtype="u1"), 2: np.arange(1 << 16, dtype="<u2")}.get(dtype.itemsize)
    content = rng.bytes(dtype.itemsize * 64) if bits is None else rng.permutation(bits).tobytes()
    content = bytes(byte & 1 for byte in content) if kind == "BOOL" else content
    values = np.frombuffer(content, dtype)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors(a=(kind, [2, len(values) // 2], content)))
    found = files.read(str(path))["a"]
    wanted = values.astype(np.float32) if dtype.kind == "V" or "float8" in dtype.name else values
    np.testing.assert_array_equal(found, wanted.reshape(2, -1), strict=True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (safetensors(a=("F4", [8], bytes(4))), "entry a is of the type F4"),
        (safetensors(a=("C64", [1], bytes(8))), "entry a is of the type C64"),
        (safetensors(a=("F32", [2], bytes(4))), "is damaged"),
        (safetensors(a=("F32", [1 << 40, 1 << 20], bytes(4))), "is damaged"),
        (safetensors(a=("F32", [1], bytes(4))).replace(b'"shape"', b'"dtype"'), "is damaged"),
        (safetensors(a=("F32", [1 << 60, 0], b"")), "sane size"),
        (
            safetensors(a=("F32", [1], bytes(4)), b=("F32", [1], bytes(4))).replace(b'"b"', b'"a"'),
            "is damaged",
        ),
        (
            safetensors(a=("F32", [0], b""), b=("I32", [0], b"")).replace(b'"b"', b'"a"'),
            "name twice",
        ),
        ((1 << 62).to_bytes(8, "little") + b"{}", "is damaged"),
        ((90_000_000).to_bytes(8, "little") + b"{}", "is damaged"),
        (b"", "is damaged"),
        (safetensors(**{"a" * 2000: ("F32", [1], bytes(4))}), "a name of 2,000 characters"),
    ],
)
def test_headers_of_safetensors_are_not_trusted(tmp_path, content, says):
    pytest.importorskip("safetensors", reason="pip install '.[safetensors]'")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=says) as error:
            files.read(str(path))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert str(error.value).isprintable()


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    os.symlink("/dev/zero", tmp_path / "zero.safetensors")
    for name in ("pipe.pth", "zero.safetensors"):
        with pytest.raises(UserError, match=f"{name} cannot be read: is no regular file"):
            files.read(str(tmp_path / name))


def test_what_holds_no_weights_is_said(tmp_path):
    for content in ([1, 2], {"a": 3}, {}, {"model": {"a": "text"}}):
        path = tmp_path / "weights.pkl"
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match="holds no weights by name"):
            files.read(str(path))
    with pytest.raises(UserError, match="cannot be read"):
        files.read(str(tmp_path / "none.pkl"))


@pytest.mark.parametrize("new", [True, False])
def test_pytorch_is_not_needed_to_read_its_files(tmp_path, monkeypatch, new):
    torch = pytest.importorskip("torch", reason="pip install '.[torch]'")
    path, tensors = tmp_path / "weights.pth", {k: torch.tensor(v) for k, v in ARRAYS.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=new)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = files.read(str(path))
    assert {k: (v.dtype, v.tolist()) for k, v in found.items()} == {
        k: (v.dtype, v.tolist()) for k, v in ARRAYS.items()
    }
    with pytest.raises(UserError, match=r"^\S+none.pth cannot be read: [^\n]*$"):
        files.read(str(tmp_path / "none.pth"))


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_a_missing_package_is_named(tmp_path, package):
    path = str(tmp_path / ("w.pth" if package == "torch" else "w.safetensors"))
    code = f"""
import sys
sys.modules["{package}"] = None
from moco_jax.base.errors import UserError
from moco_jax.weights import files
try:
    files.write({path!r}, {{}}, {{}})
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"the package {package} is needed for this: pip install {package}" in done.stdout
