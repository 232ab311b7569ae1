"""Decides a class from scores: the one with the largest score, if it is alone.

What is not decided is no class, and never counts as right.
"""

from typing import Any

UNDECIDED = -2  # no class of any data set


def decide(scores: Any) -> Any:
    """Return the class int `[...]` with the largest of `scores` `[..., classes]`, NumPy or JAX.

    It is `UNDECIDED` where the largest is shared, or a score is NaN. argmax would name the first
    of those, and an encoder whose features are all NaN would get every image of class 0 right.
    """
    xp = scores.__array_namespace__()
    # NaN is not equal to itself: with one NaN the maximum is NaN, and no score is as large.
    largest = (scores == scores.max(-1, keepdims=True)).sum(-1)
    return xp.where(largest == 1, scores.argmax(-1), UNDECIDED)
