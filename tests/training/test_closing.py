"""What a run has opened is closed however it ends, and its own error is the one that is told."""

import types
from contextlib import ExitStack

import pytest

from moco_jax.training.loop import closing

KEPT, LOST = types.SimpleNamespace(lost=""), types.SimpleNamespace(lost="taken")


class Full(Exception):
    """Stands for a disk without room."""


@pytest.mark.parametrize("own", [None, KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", [set(), {"a"}, {"b"}, {"c"}, {"a", "b", "c"}])
def test_all_is_closed_in_turn_whatever_fails(own, failing):
    closed = []

    def close(name):
        closed.append(name)
        if name in failing:
            raise Full(name)

    raised = None
    try:
        with ExitStack() as opened:
            for name in "abc":
                opened.enter_context(closing(lambda name=name: close(name), KEPT))
            if own:
                raise own
    except BaseException as error:
        raised = type(error)
    assert closed == ["c", "b", "a"]
    assert raised == (own or (Full if failing else None))


@pytest.mark.parametrize("own", [None, KeyError])
def test_nothing_is_written_to_a_workdir_that_another_run_has(own):
    closed = []
    try:
        with closing(lambda: closed.append("writer"), LOST), closing(lambda: closed.append("feed")):
            if own:
                raise own
    except KeyError:
        assert own
    assert closed == ["feed"]
