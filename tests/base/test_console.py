"""The progress line of a count: seldom in a log, with the rate since the first call."""

import io

import pytest

from moco_jax.base import console as console_lib
from moco_jax.base.console import Console, Counter
from moco_jax.base.errors import nearest_multiples


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test moves."""
    now = [100.0]
    monkeypatch.setattr(console_lib.time, "monotonic", lambda: now[0])
    return now


def test_a_count_is_shown_now_and_then_and_what_was_done_before_does_not_count(clock):
    out = io.StringIO()
    counter = Counter(Console(out=out), "shard 1: {done} of {total} images", 5000)
    for done in range(1000, 3001, 100):
        counter(done)
        clock[0] += 1
    assert out.getvalue().splitlines() == [
        "shard 1: 1,100 of 5,000 images  100 a second  left 39s",
        "shard 1: 2,100 of 5,000 images  100 a second  left 29s",
    ]
    counter(3000, at_once=True)
    assert out.getvalue().splitlines()[2].startswith("shard 1: 3,000 of 5,000 images")


def test_a_host_that_is_not_the_first_shows_nothing(clock):
    out = io.StringIO()
    counter = Counter(Console(speaks=False, out=out), "{done}", 2)
    counter(1)
    counter(2, at_once=True)
    assert not out.getvalue()


@pytest.mark.parametrize(
    ("value", "unit", "words"), [(250, 16, "use 240 or 256"), (5, 8, "use 8"), (-3, 4, "use 4")]
)
def test_the_multiples_on_both_sides_are_named(value, unit, words):
    assert nearest_multiples(value, unit) == words
