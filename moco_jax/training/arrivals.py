"""Metrics of a step as one array, which a thread fetches from the devices while training goes on.

Whoever reads a number waits until its step has run; nobody waits for the steps behind it. When an
array arrived is when its step was finished, which is what a clock of the devices goes by.
"""

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.method.batch import Metrics


@jax.jit
def _join(scalars: list[jax.Array]) -> jax.Array:
    kind = jnp.result_type(jnp.float32, *(x.dtype for x in scalars))
    return jnp.stack([x.astype(kind) for x in scalars])


def stack(metrics: Metrics) -> jax.Array:
    """Put scalars into one array `[n]` on this host's first device, in the order of their names.

    This is a program of its own: within the step's it would change how the compiler fuses and so
    rounds what is around it.
    """
    scalars = [jnp.asarray(metrics[name]) for name in sorted(metrics)]
    return _join([x.addressable_data(0) for x in scalars])


class Arrival(Mapping):
    """Metrics of a step by name, as NumPy scalars; reading them waits until the step has run.

    Truth values are 0 and 1.
    """

    def __init__(self) -> None:
        """Expect metrics that are under way."""
        self._found: Future[tuple[Mapping[str, Any], float]] = Future()

    def fetch(self, names: list[str], values: jax.Array) -> None:
        """Fetch `values`, and note when they were there; an error is told to whoever reads."""
        try:
            found = np.asarray(values)
            self._found.set_result((dict(zip(names, found, strict=True)), time.perf_counter()))
        except BaseException as error:
            self._found.set_exception(error)

    @property
    def time(self) -> float:
        """When they arrived, by `time.perf_counter`."""
        return self._found.result()[1]

    def wait(self) -> None:
        """Wait until they are there."""
        self._found.result()

    def __getitem__(self, name: str) -> Any:
        """Return one of them."""
        return self._found.result()[0][name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over their names."""
        return iter(self._found.result()[0])

    def __len__(self) -> int:
        """Count them."""
        return len(self._found.result()[0])


class Arrivals:
    """Fetches the metrics of steps in a thread, in the order in which they are expected."""

    def __init__(self) -> None:
        """Make ready; the thread begins with the first metrics."""
        self._expected: queue.SimpleQueue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def expect(self, metrics: Metrics) -> Arrival:
        """Begin to fetch `metrics`, which may still be computed and are whole on each device."""
        if self._thread is None:
            # A daemon, as it may wait for devices of which other hosts do not answer any more.
            self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
            self._thread.start()
        arrival = Arrival()
        self._expected.put((arrival, sorted(metrics), stack(metrics)))
        return arrival

    def _run(self) -> None:
        while (some := self._expected.get()) is not None:
            arrival, names, values = some
            arrival.fetch(names, values)
            del some, arrival, values  # or the last ones would be kept until the next ones come

    def close(self) -> None:
        """Let the thread end once it has fetched all that is expected; this does not wait."""
        if self._thread is not None:
            self._expected.put(None)
            self._thread = None


def means(steps: list[Arrival]) -> dict[str, float]:
    """Average each metric over `steps`, in float64: sums may be beyond what float32 holds."""
    return {
        name: float(np.mean([step[name] for step in steps], dtype=np.float64)) for name in steps[0]
    }
