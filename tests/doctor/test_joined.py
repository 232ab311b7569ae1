"""Findings of several hosts become process 0's, with what others find that is worse."""

import pytest

from moco_jax.base.errors import UserError
from moco_jax.base.findings import FAULT, OK, WARNING, Finding
from moco_jax.doctor import joined
from moco_jax.parallel import hosts


@pytest.fixture
def said(monkeypatch):
    """Say as process 0 what it says, and as others what the test puts into this list."""
    others: list = []
    monkeypatch.setattr(hosts, "is_alone", lambda: False)
    monkeypatch.setattr(hosts, "number", lambda: 0)
    monkeypatch.setattr(hosts, "gather", lambda own: [own, *others])
    return others


def test_what_another_host_finds_is_added_once_with_its_process(said):
    own = [Finding(OK, "5 GB are free"), Finding(WARNING, "tight")]
    sound = ["ok", "6 GB are free", []], ["warning", "tighter", []]
    small = ["fault", "1 GB is free", ["a", "b"]], ["warning", "tighter", []]
    said += [sound, small, small]
    found = joined.findings(own)
    assert found[:2] == own
    (worse,) = found[2:]
    assert worse == Finding(FAULT, "process 2 (and 1 others): 1 GB is free", ("a", "b"))


def test_a_slow_host_is_named():
    assert joined.slowest([50.0]) == (0, [])
    number, (even,) = joined.slowest([100.0, 90.0, 95.0])
    assert (number, even.severity) == (1, OK)
    number, (slow,) = joined.slowest([100.0, 90.0, 95.0, 20.0])
    assert (number, slow.severity) == (3, WARNING)
    assert "process 3 the fewest, against 92.5 (median)" in slow.seen


def test_what_one_host_cannot_do_is_raised_on_all(said):
    said += [None, {"kind": "UserError", "line": "the disk is full"}]
    with (
        pytest.raises(UserError, match=r"^process 2 of 3: the disk is full$"),
        hosts.together(),
    ):
        pass
