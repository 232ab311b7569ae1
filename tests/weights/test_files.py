"""Files of weights: what wants to run does not, what is cut off is said, and what is written is read again."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from moco_jax.errors import UserError
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
        torch.save({"state_dict": {"a": Evil(place)}}, path, _use_new_zipfile_serialization=ending == "pth")  # fmt: skip
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


def test_what_holds_no_weights_is_said(tmp_path):
    for content in ([1, 2], {"a": 3}, {}, {"model": {"a": "text"}}):
        path = tmp_path / "weights.pkl"
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match="holds no weights by name"):
            files.read(str(path))
    with pytest.raises(UserError, match="cannot be read"):
        files.read(str(tmp_path / "none.pkl"))


def test_where_tensorflow_came_first_pytorch_reads_in_a_process_of_its_own(tmp_path, monkeypatch):
    path = written(tmp_path, "pth")
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    found = files.read(path)
    assert "torch" not in sys.modules
    assert {k: (v.dtype, v.tolist()) for k, v in found.items()} == {
        k: (v.dtype, v.tolist()) for k, v in ARRAYS.items()
    }
    with pytest.raises(SystemExit, match=r"^\S+none.pth cannot be read: [^\n]*$"):
        files.hand_over(str(tmp_path / "none.pth"), "")


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_a_missing_package_is_named(tmp_path, package):
    code = f"""
import sys
sys.modules["{package}"] = None
from moco_jax.errors import UserError
from moco_jax.weights import files
try:
    files.write({str(tmp_path / "w.pth")!r} if "{package}" == "torch" else {str(tmp_path / "w.safetensors")!r}, {{}}, {{}})
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        f"the package {package} is needed for this: pip install 'moco_jax[{package}]'"
        in done.stdout
    )
