"""PyTorch's files read without PyTorch: its own values, checksums that hold, odd tensors by name,
claims that are not met.
"""

import collections
import io
import pickle
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from moco_jax.weights import files
from tests.weights.odd_files import named, put, refusal, tensor, text, zipped

torch = pytest.importorskip("torch", reason="these files are PyTorch's: pip install '.[torch]'")

TYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]


def saved(thing, new=True):
    file = io.BytesIO()
    torch.save(thing, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def drawn(rng, dtype):
    """A tensor of any bits of its type, or a view of one."""
    shape = tuple(rng.integers(1, 5, rng.integers(0, 4)))
    width = getattr(torch, dtype).itemsize
    content = rng.integers(0, 2 if dtype == "bool" else 256, int(np.prod(shape)) * width, np.uint8)
    made = torch.frombuffer(bytearray(content.tobytes()), dtype=getattr(torch, dtype))
    made = made.reshape(shape)
    views = [
        lambda x: x,
        lambda x: x.T if x.ndim == 2 else x,
        lambda x: x[..., :1] if x.ndim else x,
        lambda x: x[1:] if x.ndim else x,
        lambda x: x[:, None].expand(-1, 3, *x.shape[1:]) if x.ndim > 1 else x,
    ]
    return views[rng.integers(len(views))](made)


def expected(value):
    """A tensor as NumPy has it, and what NumPy has not as float32."""
    known = hasattr(np, str(value.dtype).removeprefix("torch.")) or value.dtype == torch.bool
    return value.numpy() if known else value.float().numpy()


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("seed", range(24))
def test_values_are_those_of_pytorch(tmp_path, seed, new):
    rng = np.random.default_rng(seed)
    tensors = {f"{n}.weight": drawn(rng, TYPES[(seed + n) % len(TYPES)]) for n in range(9)}
    tensors["shared"] = tensors["0.weight"]
    tensors["parameter"] = torch.nn.Parameter(torch.randn(2, 3))
    tensors["buffer"] = torch.nn.Buffer(torch.randn(2))
    tensors["nothing"] = torch.zeros(3, 0, 2)
    found = files.read(put(tmp_path, "weights.pth", saved(tensors, new)))
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        value = value.detach()
        assert found[name].shape == tuple(value.shape)
        assert found[name].dtype == expected(value).dtype
        np.testing.assert_array_equal(found[name], expected(value), strict=True)


def checkpoint():
    generator = torch.Generator().manual_seed(0)
    weights = collections.OrderedDict(
        (f"layer{n}.weight", torch.randn(4, 3, generator=generator)) for n in range(5)
    )
    weights["count"], weights["half"] = torch.tensor(3), torch.ones(5).bfloat16()
    return {"state_dict": weights, "epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(4)}}}}


def damaged(content, rng):
    """`content` with bits, bytes or pieces changed, cut off, doubled, put in or taken out."""
    start, length = rng.randrange(len(content)), rng.choice([1, 2, 8, 64, 512])
    changed, end = bytearray(content), min(len(content), start + length)
    how = rng.choice(["flip", "flip", "zero", "cut", "double", "put in", "take out"])
    if how == "flip":
        changed[start] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del changed[start:]
    elif how == "take out":
        del changed[start:end]
    else:
        pieces = {
            "zero": bytes(end - start),
            "double": changed[start:end],
            "put in": rng.randbytes(length),
        }
        changed[start : end if how == "zero" else start] = pieces[how]
    return bytes(changed)


def same(found, whole):
    return found.keys() == whole.keys() and all(
        found[n].dtype == whole[n].dtype
        and found[n].shape == whole[n].shape
        and found[n].tobytes() == whole[n].tobytes()
        for n in whole
    )


def outcomes(tmp_path, name, content, count, call=files.read):
    """How often `content`, damaged in `count` ways, is read as before, read as something else, or
    refused in a line.
    """
    whole, found = call(put(tmp_path, name, content)), collections.Counter()
    for seed in range(count):
        path = put(tmp_path, f"damaged.{name}", damaged(content, random.Random(seed)))
        try:
            found["same" if same(call(path), whole) else "other"] += 1
        except Exception:
            refusal(call, path)
            found["refused"] += 1
    return found


def test_a_damaged_zip_is_refused_or_gives_the_same_values(tmp_path):
    found = outcomes(tmp_path, "weights.pth", saved(checkpoint()), 300)
    assert found["other"] == 0
    assert found["refused"] > 150


def test_a_damaged_file_without_a_checksum_is_read_or_refused(tmp_path):
    """There is nothing to tell changed numbers by; what is cut, doubled or put in is seen."""
    found = outcomes(tmp_path, "old.pth", saved(checkpoint(), new=False), 150)
    assert found["refused"] > 75
    arrays = {n: v.float().numpy() for n, v in checkpoint()["state_dict"].items()}
    found = outcomes(tmp_path, "weights.pkl", pickle.dumps({"model": arrays}), 150)
    assert found["refused"] > 75


def test_one_bit_in_any_entry_is_refused_by_its_name(tmp_path):
    """Also in what nobody asks for, as the optimizer's."""
    content = saved({f"{n}": torch.ones(2) for n in range(20)} | {"step": 3})
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert len(archive.infolist()) > 20
    for entry in archive.infolist():
        start = content.index(entry.filename.encode()) - 26
        name, extra = struct.unpack_from("<HH", content, start + 22)
        place = start + 26 + name + extra
        if not entry.file_size:
            continue
        changed = bytearray(content)
        assert changed[place : place + entry.file_size] == archive.read(entry)
        changed[place + entry.file_size // 2] ^= 4
        said = refusal(files.read, put(tmp_path, "weights.pth", bytes(changed)))
        assert (
            f"weights.pth is damaged: its entry {entry.filename} cannot be read: Bad CRC-32" in said
        )


def meta(value):
    return value.to("meta")


ODD = {
    "a sparse tensor": lambda x: x.to_sparse(),
    "a sparse tensor ": lambda x: x.to_sparse_csr(),
    "a sparse tensor  ": lambda x: x.to_sparse_csc(),
    "a quantized tensor": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "a quantized tensor ": lambda x: torch.quantize_per_channel(
        x, torch.ones(2), torch.zeros(2), 0, torch.quint8
    ),
    "a meta tensor": meta,
    "a conjugated tensor": lambda x: torch.complex(x, x).conj(),
    "a negated tensor": lambda x: torch._neg_view(x),
    "a nested tensor": lambda x: torch.nested.nested_tensor([x, x[:1]]),
    "of the type ComplexFloat": lambda x: torch.complex(x, x),
    "of the type ComplexDouble": lambda x: torch.complex(x.double(), x.double()),
}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("what", ODD)
def test_what_is_no_plain_tensor_is_refused_by_name(tmp_path, what, new):
    weights = {"a": torch.ones(2, 2), "layer.0.weight": ODD[what](torch.ones(2, 3))}
    path = put(tmp_path, "weights.pth", saved({"state_dict": weights, "epoch": 1}, new))
    assert f"entry layer.0.weight is {what.strip()}" in refusal(files.read, path)
    beside = {"state_dict": {"a": torch.ones(2, 2)}, "mask": weights["layer.0.weight"]}
    assert list(files.read(put(tmp_path, "weights.pth", saved(beside, new)))) == ["a"]


@pytest.mark.parametrize("seed", range(24))
def test_views_reach_no_further_than_their_storage(tmp_path, seed):
    """Any claim of length, offset, shape and strides is met as NumPy meets it, or refused."""
    rng, values = random.Random(seed), np.arange(24, dtype=np.float32)
    met = 0
    for _ in range(12):
        rank = rng.randrange(1, 4)
        large = rng.random() < 0.3
        shape = [rng.choice([1, 2, 3, 4, 6, 10**12 if large else 5]) for _ in range(rank)]
        strides = [rng.choice([0, 1, 2, 4, -1 if large else 3]) for _ in range(rank)]
        offset, length = (
            rng.choice([0, 1, 5, 23, -1 if large else 2]),
            rng.choice([24, 24, 24, 23, 10**12]),
        )
        content = zipped(named(a=tensor(length, offset, shape, strides)), values.tobytes())
        path = put(tmp_path, "weights.pth", content)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        fits = length == 24 and min(*strides, offset, 0) >= 0 and last < 24 and max(shape) < 10**12
        if fits:
            steps = [4 * step for step in strides]
            wanted = np.lib.stride_tricks.as_strided(values[offset:], shape, steps)
            np.testing.assert_array_equal(files.read(path)["a"], wanted)
            met += 1
        else:
            refusal(files.read, path)
    assert met < 12


def overlapping():
    """A zip of 200 entries that all claim the bytes of one."""
    content = bytearray(zipped(named(a=tensor(2, 0, [2], [1])), b"\1" * (1 << 16), *[b""] * 200))
    archive = zipfile.ZipFile(io.BytesIO(bytes(content)))
    first, place = archive.getinfo("archive/data/0"), archive.start_dir
    while content[place : place + 4] == b"PK\1\2":
        lengths = struct.unpack_from("<HHH", content, place + 28)
        if struct.unpack_from("<I", content, place + 24)[0] == 0:
            struct.pack_into("<III", content, place + 16, first.CRC, 1 << 16, 1 << 16)
            struct.pack_into("<I", content, place + 42, first.header_offset)
        place += 46 + sum(lengths)
    return bytes(content)


def claims():
    two = tensor(2, 0, [2], [1])
    pair = named(a=two)
    zeros = bytes(8)
    yield (
        "entries would become",
        zipped(
            named(a=tensor(1 << 24, 0, [1 << 24], [1])),
            bytes(1 << 26),
            compression=zipfile.ZIP_DEFLATED,
        ),
    )
    yield "entries would become", zipped(b"]" * (1 << 24) + b".", compression=zipfile.ZIP_DEFLATED)
    yield "compressed in a way", zipped(pair, zeros, compression=zipfile.ZIP_LZMA)
    yield "compressed in a way", zipped(pair, zeros, compression=zipfile.ZIP_BZIP2)
    yield "entries would become", overlapping()
    yield (
        "must have 4,000,000,000,000 bytes and has 8",
        zipped(named(a=tensor(10**12, 0, [2], [1])), zeros),
    )
    yield "must have 8 bytes and has 16", zipped(pair, bytes(16))
    yield "which is not in the file", zipped(pair)
    yield "two sizes or types", zipped(named(a=two, b=tensor(1, 0, [1], [1])), zeros)
    yield (
        "two sizes or types",
        zipped(named(a=two, b=tensor(2, 0, [2], [1], kind="IntStorage")), zeros),
    )
    yield "none that is known", zipped(named(a=tensor(2, 0, [2], [1], kind="OtherStorage")), zeros)
    yield "without a length or a name", zipped(named(a=tensor(-2, 0, [2], [1])), zeros)
    yield "sane size", zipped(named(a=tensor(2, 0, [10**18, 0], [1, 1])), zeros)
    yield (
        "has shape (1000000, 1000000)",
        zipped(named(a=tensor(2, 0, [10**6, 10**6], [0, 0])), zeros),
    )
    yield "has shape", zipped(named(a=tensor(2, 0, [2] * 40, [0] * 40)), zeros)
    yield "without one data.pkl", zipped(pair, zeros).replace(b"data.pkl", b"data.pk1")
    yield "ends too early", zipped(pair, zeros)[:-30]


def test_claims_of_a_zip_take_no_memory(tmp_path):
    for says, content in claims():
        path = put(tmp_path, "weights.pth", content)
        del content
        tracemalloc.start()
        try:
            assert says in refusal(files.read, path)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


def test_a_name_twice_is_refused(tmp_path):
    content = zipped(named(a=tensor(2, 0, [2], [1])), bytes(8), bytes(8))
    content = content.replace(b"archive/data/1", b"archive/data/0")
    said = refusal(files.read, put(tmp_path, "weights.pth", content))
    assert "has the entry archive/data/0 twice" in said
    twice = named(a=b"N")[:-2] + text("a") + b"Nu."
    said = refusal(files.read, put(tmp_path, "weights.pth", zipped(twice)))
    assert "has the name a twice" in said


def test_entries_that_share_few_bytes_take_little_memory(tmp_path):
    """A thousand names of one storage, which is widened once."""
    entry = tensor(1 << 16, 0, [1 << 16], [1], kind="BFloat16Storage")
    content = zipped(named(**{f"a{n}": entry for n in range(1000)}), bytes(1 << 17))
    path = put(tmp_path, "weights.pth", content)
    tracemalloc.start()
    try:
        assert len(files.read(path)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_compressed_and_big_endian_zips_are_read(tmp_path):
    values = np.random.default_rng(0).normal(size=6).astype(np.float32)
    entry = named(a=tensor(6, 0, [2, 3], [3, 1]))
    packed = zipped(entry, values.tobytes(), compression=zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(
        files.read(put(tmp_path, "a.pth", packed))["a"], values.reshape(2, 3)
    )
    swapped = io.BytesIO(zipped(entry, values.byteswap().tobytes()))
    with zipfile.ZipFile(swapped, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    np.testing.assert_array_equal(
        files.read(put(tmp_path, "b.pth", swapped.getvalue()))["a"], values.reshape(2, 3)
    )


@pytest.mark.parametrize("endian", ["middle", "", "BIG", "little "])
def test_an_unknown_order_of_bytes_is_refused(tmp_path, endian):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.arange(4.0)}, path)
    other = tmp_path / "y.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            new.writestr(name, endian if name.endswith("/byteorder") else old.read(name))
    assert "byteorder" in refusal(files.read, str(other))


def test_what_a_file_plainly_is_instead_is_said(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    assert "git lfs pull" in refusal(files.read, put(tmp_path, "a.pth", pointer))
    assert "begins with '<html>no'" in refusal(files.read, put(tmp_path, "a.bin", b"<html>no"))
    assert "PK" not in refusal(files.read, put(tmp_path, "a.pt", b"PK\3\4" + bytes(40)))
