"""Names of every kind become one line that prints; different names of plain text stay different."""

import doctest
import os
import random

import pytest

from moco_jax.base import text

ODD = [
    "\n",
    "\r",
    "\x1b[2J",
    "\u202e",
    "\u2028",
    "\x85",
    "\0",
    "\ud800",
    "\udce9",
    "\u200f",
    "\x7f",
    "\t",
    "\ufeff",
]


def random_name(seed: int) -> bytes:
    return random.Random(seed).randbytes(12)


@pytest.mark.parametrize("odd", ODD)
def test_what_does_not_print_is_written_out(odd):
    shown = text.printable(f"a{odd}b")
    assert shown.isprintable()
    assert shown.encode("utf-8").startswith(b"a\\")
    assert shown.endswith("b")


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_are_one_line_of_utf8(seed):
    name = random_name(seed)
    shown = text.printable(name)
    assert shown.isprintable()
    assert shown == text.printable(os.fsdecode(name))
    shown.encode("utf-8")


def test_plain_names_stay_as_they_are():
    for name in ("cat.png", "猫/é 1.jpg", "22.05.00.png", r"a\b"):
        assert text.printable(name) == name


def test_examples():
    assert doctest.testmod(text).failed == 0


@pytest.mark.parametrize("seed", range(30))
def test_a_line_gives_its_name_back(seed):
    """Bytes of every kind, and texts that look like what stands for them."""
    rng = random.Random(seed)
    pieces = [
        rng.randbytes(3),
        b"\\",
        b"x",
        b"e9",
        b"\\xe9",
        b"\n",
        b"\0",
        "\u2028".encode(),
        "猫".encode(),
    ]
    name = os.fsdecode(b"".join(rng.choices(pieces, k=8)))
    line = text.to_line(name)
    assert line.encode("utf-8").decode("utf-8") == line
    assert line.splitlines() == [line]
    assert text.from_line(line) == name


def test_names_that_are_lines_stay_as_they_are():
    for name in ("cat.png", "猫/é 1.jpg", r"a\b", "\u0646\u200c\u0645.png", "\u202e.png"):
        assert text.to_line(name) == name
    assert text.to_line(r"a\xe9") != text.to_line("a\udce9")
