"""Shards that claim more than they hold, and what is no file, are refused at once.

Refusals take one line and little memory.
"""

import io
import os
import resource
import socket
import struct
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from moco_jax.base.errors import UserError
from moco_jax.data.packing import example
from moco_jax.data.sources import index, open_source, tfrecord
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.refusals import described
from moco_jax.data.sources.tar import TarSource
from moco_jax.data.sources.tfds import TFDSSource
from tests.data.pictures import encoded

SOUND = encoded("PNG", pixels=np.zeros((4, 4, 3), np.uint8))


def refused(kind, path, message):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as caught:
        open_source(kind, "train", str(path))
    assert str(caught.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def put_pipe(path):
    os.mkfifo(path)


def put_socket(path):
    # A socket's path may be short only.
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def put_folder(path):
    path.mkdir()


def put_link_to(target):
    return lambda path: path.symlink_to(target)


NO_FILES = {
    "pipe": put_pipe,
    "socket": put_socket,
    "folder": put_folder,
    "endless": put_link_to("/dev/zero"),
    "empty device": put_link_to("/dev/null"),
    "nothing": put_link_to("/no/such/file"),
}


@pytest.mark.parametrize("what", NO_FILES)
@pytest.mark.parametrize("kind", ["tar", "tfrecord", "arrayrecord"])
@pytest.mark.parametrize("beside", [False, True])
def test_no_regular_file_is_a_shard(tmp_path, what, kind, beside):
    odd = tmp_path / f"x.{kind}"
    NO_FILES[what](odd)
    if beside:
        (tmp_path / f"a.{kind}").write_bytes(b"")
    refused(kind, tmp_path, r"x\.\w+ is no regular file")
    refused(kind, odd if what != "folder" else f"{tmp_path}/x*", "no")


@pytest.mark.parametrize("what", ["pipe", "socket", "endless", "empty device", "nothing"])
def test_no_regular_file_is_an_image(tmp_path, what):
    NO_FILES[what](tmp_path / "x.png")
    (tmp_path / "a.png").write_bytes(SOUND)
    (tmp_path / "list.txt").write_text("a.png\nx.png\n")
    listed = FolderSource(str(tmp_path / "list.txt"))
    assert listed.read(np.arange(2)).tolist() == [SOUND, b""]
    why = "no such file or directory" if what == "nothing" else "is no regular file"
    assert why in described(listed, 1) or what == "socket"
    within = FolderSource(str(tmp_path))
    assert len(within) == (2 if what == "nothing" else 1)


def record_head(length):
    head = np.frombuffer(struct.pack("<Q", length), np.uint8)
    return head.tobytes() + struct.pack("<I", int(tfrecord.masked_crc(head[None])[0]))


def sparse(path, begin, size):
    path.write_bytes(begin)
    os.truncate(path, size)


@pytest.mark.parametrize("length", [2**31, 2**31 + 5, 2**32, 2**32 + 7, 2**33, 5 * 10**9])
def test_a_record_is_no_longer_than_its_place_in_an_index(tmp_path, length):
    sparse(tmp_path / "x.tfrecord", record_head(length), length + 16)
    refused("tfrecord", tmp_path, f"x.tfrecord has a record of {length:,} bytes at byte 0")


@pytest.mark.parametrize("length", [1, 2**20, 2**31, 2**62, 2**63, 2**64 - 1, 2**64 - 16])
def test_a_record_is_no_longer_than_its_file(tmp_path, length):
    (tmp_path / "x.tfrecord").write_bytes(record_head(length) + b"\0" * 4)
    refused("tfrecord", tmp_path, "x.tfrecord is cut off or damaged at byte 0")


@pytest.mark.parametrize("seed", range(20))
def test_a_length_that_was_changed_is_found_out(tmp_path, seed):
    rng = np.random.default_rng(seed)
    path = tmp_path / "x.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for n in range(400):
            writer.write(example(SOUND, f"{n}", None))
    offsets, _ = tfrecord.scan(str(path))
    content, which = bytearray(path.read_bytes()), int(rng.integers(len(offsets)))
    content[offsets[which] - 12 + int(rng.integers(12))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    refused("tfrecord", tmp_path, f"damaged at byte {offsets[which] - 12}")


def test_a_file_of_nothing_but_room_is_refused_at_once(tmp_path):
    sparse(tmp_path / "x.tfrecord", b"", 10**11)
    refused("tfrecord", tmp_path, "damaged at byte 0")
    os.rename(tmp_path / "x.tfrecord", tmp_path / "x.tar")
    refused("tar", tmp_path, "x.tar is cut off, or no plain tar file|hold no image")


def test_checksums_are_those_of_the_standard():
    """CRC-32C of RFC 3720, B.4: 32 bytes of zeros, ones, and counted up."""
    words = np.stack([np.zeros(32), np.full(32, 255), np.arange(32)]).astype(np.uint8)
    plain = np.asarray([0x8A9136AA, 0x62A8AB43, 0x46DD794E], np.uint32)
    masked = (plain >> 15 | plain << 17) + np.uint32(0xA282EAD8)
    np.testing.assert_array_equal(tfrecord.masked_crc(words), masked)


def header(name="0.png", size=0, kind=b"0", pax=None):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    if pax is not None:
        info.pax_headers = pax
    return info.tobuf(tarfile.PAX_FORMAT if pax is not None else tarfile.GNU_FORMAT)


SIZES = (10**20, 10**15, 10**10, 2**63, 2**64)
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
BELOW_ZERO = header().replace(b"0" * 11 + b"\0", b"\xff" * 11 + b"\0", 1)[:124] + b"\xff" * 12
CLAIMS = {
    **{f"PAX size {n:.0e}": header(pax={"size": str(n)}) for n in SIZES},
    "PAX size of 5,000 digits": header(pax={"size": "9" * 5000}) + b"\1" * 512,
    "PAX size below zero": header(pax={"size": "-1536"}),
    "size of a member": header(size=2**40),
    "size below zero": BELOW_ZERO + header()[136:],
    "PAX header of 10 GB": header("x", 10**10, b"x"),
    "PAX header of 2**40": header("x", 2**40, b"x"),
    "global header of 10 GB": header("x", 10**10, b"g"),
    "long name of 10 GB": header("x", 10**10, b"L"),
    "long link of 10 GB": header("x", 10**10, b"K"),
    "long name of 2 MB": header("x", 2 << 20, b"L") + b"n" * (2 << 20),
    "thousands of headers in each other": (header("x", 512, b"L") + b"n" * 512) * 3000,
    "no end of a sparse map": header(pax=SPARSE | {"GNU.sparse.name": "0.png"}),
    "a sparse map of words": header("0.png", 512, pax=SPARSE) + b"x\n" * 256,
    "a member cut off": header(size=4000) + b"x" * 700,
}


def opened(path):
    """The tar, or what it is refused with."""
    try:
        return TarSource(str(path)), ""
    except UserError as error:
        return None, str(error)


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("room", [0, 3 * 10**10])
def test_a_tar_is_believed_no_more_than_it_holds(tmp_path, claim, room):
    begin = header("a.png", len(SOUND)) + SOUND.ljust(512, b"\0")
    path = tmp_path / "x.tar"
    sparse(path, begin + CLAIMS[claim], room or len(begin + CLAIMS[claim]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, said = opened(path)
    if found is None:
        assert "x.tar" in said
        assert said.isprintable()
    else:  # a claim that there is room for, or none that `tarfile` makes anything of
        assert found.read(np.arange(1))[0] == SOUND
        assert all(len(name) < 1 << 20 for name in found.names(np.arange(len(found))))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_member_too_long_for_an_index_is_refused_by_name(tmp_path):
    sparse(tmp_path / "x.tar", header("big.npy", 2**31), 2**31 + 2048)
    refused("tar", tmp_path, r"x.tar: big.npy has 2,147,483,648 bytes")
    sparse(tmp_path / "x.tar", header("big.bin", 2**31), 2**31 + 2048)
    refused("tar", tmp_path, "hold no image")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "\t",
        "/",
        ":",
        "a b",
        "../x",
        "é",
        "a\x1b[2J",
        "caf\udce9",
        "x/y:z/w",
        ".",
        "\n",
        "cifar10:x",
    ],
)
def test_what_names_no_set_of_tfds_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="dataset='tfds:") as caught:
        TFDSSource(name, "train", str(tmp_path))
    assert str(caught.value).isprintable()


def test_braces_of_too_many_files_are_refused(tmp_path):
    refused("tar", f"{tmp_path}/x-{{0..99999999999}}.tar", "names 100,000,000,000 files")


def test_a_file_whose_name_has_braces_is_a_file(tmp_path):
    with tarfile.open(tmp_path / "x{1}.tar", "w") as archive:
        info = tarfile.TarInfo("0.png")
        info.size = len(SOUND)
        archive.addfile(info, io.BytesIO(SOUND))
    assert len(TarSource(str(tmp_path / "x{1}.tar"))) == 1
    assert index.short(["a/x.tar", "a/x.tar"]) == ["x.tar", "x.tar"]
