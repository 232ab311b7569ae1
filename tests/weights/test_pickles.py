"""Pickles of strangers: harmless containers are read over, calls are refused, and claims take no
memory.
"""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import pickle
import random
import struct
import tracemalloc
import types
import uuid

import numpy as np
import pytest

from moco_jax.weights import files, pickles
from tests.weights import odd_files
from tests.weights.odd_files import called, named, numbers, put, refusal, text, whole

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


class Colour(enum.Enum):
    """Somebody's enumeration."""

    RED = 1
    BLUE = "blue"


class Meter:
    """Somebody's class, of no harm and unknown to the reader."""

    def __init__(self):
        self.values = [1.0, 2.0]


class Attributes(dict):
    """Somebody's dictionary."""


INERT = {
    "namespace": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/x")),
    "simple namespace": types.SimpleNamespace(a=1),
    "scalar": np.float32(3),
    "scalars": [np.float64(3), np.int64(4), np.bool_(True), np.str_("x")],
    "dtype": np.dtype("f4"),
    "big dtype": np.dtype(">i8"),
    "path": pathlib.Path("/x/y"),
    "windows": pathlib.PureWindowsPath("c:/x"),
    "ordered": collections.OrderedDict(a=1),
    "defaults": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], 5),
    "sets": [{1, 2}, frozenset({3})],
    "enumeration": [Colour.RED, Colour.BLUE],
    "keys": {Colour.RED: 1, (1, 2): 3, (1, (2, 3)): 4, None: 5},
    "object": Meter(),
    "attributes": Attributes(a=1),
    "date": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    "delta": datetime.timedelta(2),
    "decimal": decimal.Decimal("1.5"),
    "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=5),
    "complex": 1 + 2j,
    "range": [range(5), slice(2)],
    "bytes": [b"x", bytearray(b"y")],
    "a class": [Meter, np.ndarray, len],
    "partial": functools.partial(len),
    "random": [random.Random(3).getstate(), np.random.RandomState(3), np.random.default_rng(3)],
    "text array": np.array(["a", "b"]),
    "object array": np.array([None, {}], object),
    "structured": np.zeros(2, [("a", "f4")]),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("what", INERT)
def test_harmless_containers_are_read_over(tmp_path, what, protocol):
    content = {"epoch": 3, "args": INERT[what], "model": {"a": ARRAY}, "more": [INERT[what]]}
    path = put(tmp_path, "weights.pkl", pickle.dumps(content, protocol))
    found = files.read(path)
    assert list(found) == ["a"]
    np.testing.assert_array_equal(found["a"], ARRAY)


@pytest.mark.parametrize("what", ["namespace", "scalar", "path", "defaults", "counter", "object"])
@pytest.mark.parametrize("new", [True, False])
def test_so_they_are_in_files_of_pytorch(tmp_path, what, new):
    torch = pytest.importorskip("torch", reason="pip install '.[torch]'")
    path = tmp_path / "weights.pth"
    content = {"state_dict": {"a": torch.tensor(ARRAY)}, "args": INERT[what]}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    np.testing.assert_array_equal(files.read(str(path))["a"], ARRAY)


EVIL = [
    "os system",
    "posix system",
    "nt system",
    "builtins eval",
    "builtins exec",
    "builtins getattr",
    "builtins open",
    "builtins __import__",
    "subprocess Popen",
    "subprocess run",
    "runpy run_path",
    "shutil rmtree",
    "webbrowser open",
    "importlib import_module",
    "operator attrgetter",
    "pty spawn",
    "socket create_connection",
    "pickle loads",
    "torch load",
    "torch.hub load",
    "numpy load",
    "torch.storage _load_from_bytes",
    "numpy.testing._private.utils runstring",
    "pip main",
    "__main__ act",
    "some.thing act",
    "__builtin__ eval",
    "types FunctionType",
]


@pytest.mark.parametrize("by", ["R", "i", "o"])
@pytest.mark.parametrize("evil", EVIL)
def test_calls_are_refused_wherever_they_stand(tmp_path, evil, by):
    entry = called("numpy ndarray", numbers((1,)), text("f4"), b"U\x04abcd")
    for content in (
        named(a=entry, b=called(evil, text("x"), by=by)),
        named(model=named(a=entry)[2:-1], args=called(evil, text("x"), by=by)),
    ):
        said = refusal(files.read, put(tmp_path, "weights.pkl", content))
        name = evil.replace(" ", ".").replace("__builtin__", "builtins")
        assert f"it asks for {name} to be run" in said


def test_what_is_called_is_never_looked_up(tmp_path):
    """Modules of these names would be found if anything were imported."""
    (tmp_path / "made_by_import.py").write_text("raise SystemExit('was imported')")
    content = named(
        a=called("made_by_import Thing", by="\x81"), b=called("made_by_import Thing", text("x"))
    )
    assert "holds no weights by name" in refusal(files.read, put(tmp_path, "weights.pkl", content))


def test_an_object_among_weights_is_refused_by_name(tmp_path):
    content = pickle.dumps({"a": ARRAY, "b.weight": Meter()})
    said = refusal(files.read, put(tmp_path, "weights.pkl", content))
    assert "b.weight among its weights is an object of tests.weights.test_pickles.Meter" in said


def test_a_whole_network_is_named(tmp_path):
    torch = pytest.importorskip("torch", reason="pip install '.[torch]'")
    for number, new in enumerate((True, False)):
        path = tmp_path / f"{number}.pth"
        torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=new)
        assert "object of torch.nn.modules.linear.Linear" in refusal(files.read, str(path))


def test_big_endian_and_python_2_arrays_are_read(tmp_path):
    for number, array in enumerate(
        (ARRAY.astype(">f4"), ARRAY.astype(">i2"), np.asfortranarray(ARRAY), ARRAY.astype("f2"))
    ):
        path = put(tmp_path, f"{number}.pkl", pickle.dumps({"a": array}, 2))
        np.testing.assert_array_equal(files.read(path)["a"], array)
    old = called(
        "numpy ndarray", numbers((2,)), text("<f4"), b"U\x08" + np.float32([1.5, -2]).tobytes()
    )
    np.testing.assert_array_equal(
        files.read(put(tmp_path, "old.pkl", named(a=old)))["a"], [1.5, -2]
    )


def claim(code, size):
    return b"\x80\x05" + code + size + b"abc."


EIGHT = struct.pack("<Q", 1 << 33)
MANY = "latin1"
CLAIMS = {
    "a bytearray": b"\x80\x02" + called("builtins bytearray", whole(1_500_000_000)) + b".",
    "bytes": b"\x80\x02" + called("builtins bytes", whole(1_500_000_000)) + b".",
    "a bytearray of Python 2": b"\x80\x02" + called("__builtin__ bytearray", whole(1 << 31)) + b".",
    "a new bytearray": b"\x80\x02" + called("builtins bytearray", whole(1 << 31), by="\x81") + b".",
    "an old bytearray": b"\x80\x02" + called("builtins bytearray", whole(1 << 31), by="i") + b".",
    "BYTEARRAY8": claim(b"\x96", EIGHT),
    "BINBYTES8": claim(b"\x8e", EIGHT),
    "BINBYTES": claim(b"B", struct.pack("<I", 1 << 31)),
    "BINSTRING": claim(b"T", struct.pack("<i", (1 << 31) - 1)),
    "BINUNICODE": claim(b"X", struct.pack("<I", 1 << 31)),
    "BINUNICODE8": claim(b"\x8d", EIGHT),
    "LONG4": claim(b"\x8b", struct.pack("<i", (1 << 31) - 1)),
    "a frame": b"\x80\x04\x95" + EIGHT + b"N.",
    "a place in the memo": b"\x80\x02Nr" + struct.pack("<I", 1 << 29) + b".",
    "a list of a range": b"\x80\x02"
    + called("builtins list", called("builtins range", whole(1 << 30)))
    + b".",
    "an array": named(a=called("numpy ndarray", numbers((1 << 30,)), text("f4"), b"U\0")),
    "an array of a product": named(
        a=called("numpy ndarray", numbers((1 << 33, 1 << 33)), text("f4"), b"U\0")
    ),
    "an array of nothing": named(
        a=called("numpy ndarray", numbers((1 << 60, 0)), text("f4"), b"U\0")
    ),
    "a large type": named(a=called("numpy ndarray", numbers((1,)), text("V999999999"), b"U\0")),
    "a deque": b"\x80\x02" + called("collections deque", b"]", whole(1 << 60)) + b".",
    "keys within keys": b"\x80\x02}(K\1q\0" + b"h\0h\0\x86q\0" * 200 + b"Nu.",
    "text that is encoded often": b"\x80\x02("
    + text("a" * 100_000)
    + b"q\0"
    + (b"c_codecs\nencode\nh\0" + text("latin1") + b"\x86R") * 2000
    + b"l.",
    "a file within itself": b"\x80\x02}q\0" + text("model") + b"h\0s.",
    "lists in lists": b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
    "digits": b"I" + b"9" * 100_000 + b"\n.",
}


@pytest.mark.parametrize("what", CLAIMS)
def test_claims_take_no_memory(tmp_path, what):
    path = put(tmp_path, "weights.pkl", CLAIMS[what])
    tracemalloc.start()
    try:
        refusal(files.read, path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_pickle_of_endless_steps_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "STEPS", 1000)
    path = put(tmp_path, "weights.pkl", b"\x80\x02" + b"]" * 5000 + b".")
    assert "more than 1,000 steps" in refusal(files.read, path)


@pytest.mark.parametrize("seed", range(40))
def test_scrambled_pickles_are_read_or_refused(tmp_path, seed):
    """Opcodes in any order: never anything but values or a refusal."""
    rng = random.Random(seed)
    pieces = [
        b"]",
        b"}",
        b")",
        b"(",
        b"0",
        b"1",
        b"2",
        b"t",
        b"l",
        b"d",
        b"e",
        b"u",
        b"s",
        b"a",
        b"b",
        b"R",
        b"\x81",
        b"q\0",
        b"h\0",
        b"N",
        b"K\1",
        b"o",
        b"Q",
        b"\x92",
        b"\x90",
        b"\x91",
        b"\x8f",
        b"\x94",
        b"\x97",
        text("a"),
        whole(3),
        called("numpy dtype", text("f4")),
        called("numpy.core.multiarray _reconstruct"),
        b"ccollections\nOrderedDict\n",
    ]
    for _ in range(20):
        content = b"\x80\x04" + b"".join(rng.choices(pieces, k=rng.randrange(1, 30))) + b"."
        refusal(files.read, put(tmp_path, "weights.pkl", content))


def test_the_shared_builders_make_what_is_read(tmp_path):
    """The pickles written byte by byte above are sound where they claim nothing."""
    content = odd_files.zipped(named(a=odd_files.tensor(6, 0, (2, 3), (3, 1))), ARRAY.tobytes())
    np.testing.assert_array_equal(files.read(put(tmp_path, "weights.pth", content))["a"], ARRAY)
