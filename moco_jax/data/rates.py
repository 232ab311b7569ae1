"""How many view pairs a second a host makes, once it makes them steadily."""

import time
from collections.abc import Iterator
from typing import Any

WINDOWS = 6
STEADY = 1.1


def pairs_per_second(batches: Iterator[dict[str, Any]], seconds: float) -> float:
    """Measure how many view pairs a second `batches` yield, once they do so steadily.

    Of windows of at least `seconds` the first is left out, and the last counts: a window that is no
    faster than the one before by more than a tenth. While it is, programs are still compiled for
    the shapes of the images; after `WINDOWS` the measure ends in any case.
    """
    next(batches)
    rates: list[float] = []
    while len(rates) < WINDOWS:
        count, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds or not count:
            count += len(next(batches)["index"])
        rates.append(count / elapsed)
        if len(rates) > 1 and rates[-1] < STEADY * rates[-2]:
            break
    return rates[-1]
