"""What cannot be opened is refused in one line."""

import pytest

from moco_jax.data import sources
from moco_jax.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("folder", "train", ""), "data_dir='' names no folder"),
        (("folder", "train", "/no/such"), "data_dir=/no/such is no folder"),
        (("tar", "train", ""), "data_dir='' names no tar files"),
        (("tar", "train", "/no/such.tar"), "there is no tar file /no/such.tar"),
        (("tfrecord", "train", "/no/x-{0..3}"), "there is no tfrecord file /no/x-0"),
        (("tfrecord", "train", "/no/x-*"), "there is no tfrecord file /no/x-"),
        (("tar", "train", "/no/{3..1}.tar"), "{3..1} names nothing"),
        (("tar", "train", "/no/{3}.tar"), r"\{3\} names nothing"),
        (("nothing", "train", ""), "dataset='nothing' is unknown; known are digits"),
        (("digits", "valid", ""), "split='valid' is unknown; dataset='digits' has train and test"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        sources.open_source(*arguments)


def test_more_examples_than_an_index_can_name_are_refused(monkeypatch):
    monkeypatch.setattr(sources, "LARGEST", 1000)
    with pytest.raises(UserError, match="'digits' has 1437 examples; at most 1000"):
        sources.open_source("digits", "train", "")
