"""Flags of numbers: what is inside comes through, all else is refused by a line that names the flag."""

import importlib
import math

import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from moco_jax import number_flags
from moco_jax.errors import UserError
from moco_jax.evaluation.commands import common
from moco_jax.number_flags import NumberParser
from moco_jax.settings.kinds import Range

steady = settings(derandomize=True, deadline=None, database=None, max_examples=100)
COMMANDS = ["main", "doctor", "evaluate", "embed", "pack", "convert", "report.__main__", "ablation"]


def ours():
    """Every flag of a number that a command line of the package has."""
    for name in COMMANDS:
        importlib.import_module(f"moco_jax.{name}")
    found = flags.FLAGS.flags_by_module_dict().items()
    each = [flag for module, some in found if module.startswith("moco_jax") for flag in some]
    return [f for f in each if isinstance(f.parser, NumberParser) and "." not in f.name]


def test_no_flag_of_a_number_is_without_bounds():
    names = {flag.name for flag in ours()}
    assert {"k", "step", "image_size", "epochs", "rate", "backbone_lr", "shards", "white", "port", "images",
            "num_processes", "process_id", "sample", "step_seconds", "crops", "tests"} <= names  # fmt: skip
    for module, some in flags.FLAGS.flags_by_module_dict().items():
        for flag in some if module.startswith("moco_jax") else ():
            plain = isinstance(flag.parser, flags.IntegerParser | flags.FloatParser)
            assert not plain, f"--{flag.name} of {module} lets NaN or any size through"


def test_every_flag_refuses_what_is_outside():
    for flag in ours():
        allowed = flag.parser.allowed
        words = ["nan", "inf", "-inf", "", "x", "1e999", "9" * 5000, f"{allowed.most * 2 + 1}"]
        words += [str(allowed.least - 1), "0.5"] if flag.parser.kind is int else ["-1"]
        for word in words:
            with pytest.raises(flags.IllegalFlagValueError, match=f"--{flag.name}=.* must be a "):
                flag._parse(word)
        assert flag._parse(str(allowed.most)) == allowed.most


@steady
@given(st.integers(-(2**70), 2**70))
def test_whole_numbers_are_read_however_they_are_written(number):
    assert number_flags.read_whole(str(number)) == number
    assert number_flags.read_whole(f"{number}.0") == number
    assert number_flags.read_whole(f"{number}e2") == 100 * number
    with pytest.raises(ValueError, match="whole"):
        number_flags.read_whole(f"{number}.5")


@pytest.mark.parametrize(
    "text", ["1e999999999", "nan", "Infinity", "1e-3", "", "0x", "1,5", "9" * 5000]
)
def test_no_whole_number(text):
    with pytest.raises(ValueError, match="number"):
        number_flags.read_whole(text)


@steady
@given(st.floats(allow_nan=True), st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_a_number_comes_through_if_it_is_inside(number, least, span):
    parser = NumberParser(float, Range(least, least + span))
    if math.isfinite(number) and least <= number <= least + span:
        assert parser.parse(repr(number)) == number
    else:
        with pytest.raises(ValueError, match="must be a number, at least"):
            parser.parse(repr(number))


@pytest.mark.parametrize(
    "words", [["nan"], ["1", "inf"], ["-1"], ["0.1", "1e39"], ["x"], ["1", ""]]
)
def test_lists_of_numbers(words):
    class Flag:
        name, value = "rates", words

    with pytest.raises(UserError, match=f"--rates={','.join(words)} is no list of numbers"):
        common.numbers(Flag, float, 1e-9)
