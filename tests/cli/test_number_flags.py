"""Flags of numbers take what is in their range; one line that names the flag refuses all else."""

import math

import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from moco_jax.cli import commands, number_flags
from moco_jax.cli.number_flags import NumberParser, NumbersParser
from moco_jax.config.settings.kinds import LARGEST, Range

steady = settings(derandomize=True, deadline=None, database=None, max_examples=50)


NAMES = {
    "main": {"minutes", "num_processes", "process_id"},
    "doctor": {"sample", "step_seconds", "num_processes", "process_id"},
    "evaluate": {
        "step",
        "image_size",
        "epochs",
        "batch_size",
        "crops",
        "subset_seed",
        "backbone_lr",
        "classifier_lr",
        "scratch_lr",
        "weight_decay",
        "layer_decay",
        "tests",
        "iterations",
        "rate",
        "crop",
        "num_processes",
        "process_id",
    },
    "embed": {"step", "k", "num_processes", "process_id"},
    "pack": {
        "shards",
        "part",
        "parts",
        "channels",
        "white",
        "max_pixels",
        "shorter_side",
        "quality",
        "sample",
        "background",
    },
    "convert": set(),
    "report": {"port", "images"},
    "ablation": {"seeds"},
}
LISTS = {"evaluate": {"k", "temperature", "rates", "decays", "labels"}}


@pytest.mark.parametrize("command", NAMES)
def test_every_flag_of_a_number_refuses_what_is_outside(command):
    whole = commands.command_of("pretrain" if command == "main" else command)
    each = [
        own[name]
        for one in (whole, *whole.subcommands.values())
        for own in [one.own_flags()]
        for name in own
    ]
    numbers = [
        f
        for f in each
        if isinstance(f.parser, flags.ArgumentParser) and f.flag_type() in ("int", "float")
    ]
    assert {flag.name for flag in numbers} == NAMES[command]
    for flag in numbers:
        allowed = flag.parser.allowed  # those of absl have none, and let NaN through
        words = ["nan", "inf", "-inf", "", "x", "1e999", "9" * 5000, str(allowed.most * 2 + 1)]
        words += [str(allowed.least - 1), "0.5"] if flag.parser.kind is int else ["-1"]
        for word in words:
            with pytest.raises(flags.IllegalFlagValueError, match=f"--{flag.name}=.* must be a "):
                flag._parse(word)
        assert flag._parse(str(allowed.most)) == allowed.most
    lists = [flag for flag in each if isinstance(flag.parser, NumbersParser)]
    assert {flag.name for flag in lists} == LISTS.get(command, set())
    for flag in lists:
        most = flag.parser.each.allowed.most
        for word in ("nan", "inf", "-1", "1,,2", "x", "1,nan", str(most * 2 + 1)):
            with pytest.raises(
                flags.IllegalFlagValueError, match=f"--{flag.name}=.* must be .* each"
            ):
                flag._parse(word)
        assert flag._parse(f"{most},1") == [1, most]


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
def test_a_list_with_one_that_is_no_number_is_refused(words):
    with pytest.raises(
        ValueError, match="must be numbers with commas between them, at least 1e-09"
    ):
        NumbersParser(float, Range(1e-9, LARGEST)).parse(",".join(words))


@steady
@given(st.lists(st.integers(1, 10**9), max_size=9), st.booleans())
def test_a_list_comes_ascending_and_each_number_once(found, as_text):
    parser = NumbersParser(int, Range(1, 10**9))
    given = ",".join(map(str, found)) if as_text else found
    assert parser.parse(given) == sorted(set(found))
