"""What files of weights may be made of, for tests: a narrow network, and pickles and zips written
byte by byte.
"""

import io
import struct
import zipfile

import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.weights import torchvision
from moco_jax.weights.pretrained import part, template


def network():
    """Entries of a ResNet-10, eight channels wide, under torchvision's names, with a classifier."""
    rng = np.random.default_rng(5)
    shapes = part(template(dict(name="resnet10", width=8, stem="imagenet"), 32), "backbone")
    empty = torchvision.save(_filled(shapes, rng))
    return empty | {"fc.weight": rng.normal(size=(3, 64)).astype(np.float32)}


def _filled(tree, rng):
    if hasattr(tree, "items"):
        return {name: _filled(value, rng) for name, value in tree.items()}
    return (1 + rng.random(tree.shape)).astype(tree.dtype)


def refusal(call, *arguments):
    """The text of the UserError that `call` raises, which is one line that prints."""
    with pytest.raises(UserError) as error:
        call(*arguments)
    text = str(error.value)
    assert text.isprintable()
    assert text
    return text


def whole(number):
    """The opcodes that put down a whole number of any size."""
    content = number.to_bytes(20, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def text(words):
    """The opcodes that put down text."""
    content = words.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def numbers(values):
    """The opcodes of a tuple of whole numbers."""
    return b"(" + b"".join(map(whole, values)) + b"t"


def called(name, *arguments, by="R"):
    """The opcodes that call `name`, 'module name', with these opcodes of arguments: `by` is REDUCE,
    INST, OBJ or NEWOBJ.
    """
    module, name = (part.encode() for part in name.split(" "))
    inside = b"".join(arguments)
    if by == "i":
        return b"(" + inside + b"i" + module + b"\n" + name + b"\n"
    if by == "o":
        return b"(c" + module + b"\n" + name + b"\n" + inside + b"o"
    return b"c" + module + b"\n" + name + b"\n(" + inside + b"t" + by.encode("latin1")


def tensor(length, offset, shape, strides, key="0", kind="FloatStorage"):
    """The opcodes of PyTorch's tensor, with a claim in each place."""
    storage = (
        b"("
        + text("storage")
        + b"ctorch\n"
        + kind.encode()
        + b"\n"
        + text(key)
        + text("cpu")
        + whole(length)
        + b"tQ"
    )
    return called(
        "torch._utils _rebuild_tensor_v2",
        storage,
        whole(offset),
        numbers(shape),
        numbers(strides),
        b"\x89}",
    )


def named(**entries):
    """The pickle of a dictionary of these opcodes."""
    return b"\x80\x02}(" + b"".join(text(n) + value for n, value in entries.items()) + b"u."


def zipped(pickled, *storages, **options):
    """A zip as PyTorch writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for key, content in enumerate(storages):
            archive.writestr(f"archive/data/{key}", content)
    return file.getvalue()


def put(folder, name, content):
    """The path of a file of these bytes."""
    path = folder / name
    path.write_bytes(content)
    return str(path)
