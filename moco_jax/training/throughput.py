"""Speed of a run, what it waits for, and profiler traces of its steps."""

import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath

# Dense bfloat16 operations a second of one device, from the makers' data sheets, by what JAX's name
# for it begins with.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,  # a chip's two TensorCores are two devices
    "Tesla T4": 65e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(kind: str) -> float | None:
    """Return the peak operations a second of a `device_kind`; None where it is not known."""
    known = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


class Clock:
    """Averages metrics between two readings, and measures throughput and waiting."""

    def __init__(self, batch_size: int, last: int, start: int, flops: float | None):
        """Begin to measure.

        Args:
            batch_size: images in a step, on all devices.
            last: the last step of the run.
            start: the step after which it begins.
            flops: operations of one step on one device; None where the compiler does not say.
        """
        self.flops, self.peak = flops, peak_flops(jax.devices()[0].device_kind)
        self.born = time.perf_counter()
        self.batch_size, self.total = batch_size, last
        self.step = start
        self.window: list[dict[str, jax.Array]] = []
        self.waited = 0.0
        self.began = time.perf_counter()
        self.seconds_per_step = 0.0

    def waiting(self):
        """Return a context whose time counts as waiting for data."""
        return _Timed(lambda seconds: setattr(self, "waited", self.waited + seconds))

    def pause(self):
        """Return a context whose time does not count."""
        return _Timed(lambda seconds: setattr(self, "began", self.began + seconds))

    def count(self, metrics: dict[str, jax.Array]) -> None:
        """Add the metrics of one more step, which are still on the device."""
        self.step += 1
        self.window.append(metrics)

    def read(self) -> dict[str, float]:
        """Return means since the last reading; this waits for the device."""
        values = jax.device_get(self.window)
        elapsed = time.perf_counter() - self.began
        self.seconds_per_step = elapsed / len(values)
        # In float64, as the sum of some gradients' norms may be beyond float32.
        numbers = {
            name: float(np.mean([v[name] for v in values], dtype=np.float64)) for name in values[0]
        }
        numbers["images_per_second"] = self.batch_size / self.seconds_per_step
        numbers["waiting_share"] = min(self.waited / elapsed, 1.0)
        if self.flops:
            numbers["teraflops_per_device"] = self.flops / self.seconds_per_step / 1e12
            if self.peak:
                numbers["mfu"] = self.flops / self.seconds_per_step / self.peak
        self.window, self.waited, self.began = [], 0.0, time.perf_counter()
        return numbers

    @property
    def age(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.born

    @property
    def left(self) -> float:
        """Seconds to the end at the present pace."""
        return (self.total - self.step) * self.seconds_per_step


class Profile:
    """Writes a profiler trace of some steps, for TensorBoard or Perfetto."""

    def __init__(self, steps: Sequence[int], place: epath.Path):
        """Make ready to trace `steps` into the folder `place`.

        `steps`: the first and the last one, counted from 1; (0, 0) for none.
        """
        self.first, self.last = steps
        self.place, self.running = place, False

    def before(self, step: int) -> None:
        """Begin the trace before its first step, or where a run goes on within it."""
        if self.first <= step <= self.last and not self.running:
            jax.profiler.start_trace(str(self.place))
            self.running = True

    def after(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """End the trace when its last step has run."""
        if step == self.last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Write what was traced, also where a run ends before the last step."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False


class _Timed:
    def __init__(self, report):
        self.report = report

    def __enter__(self):
        self.began = time.perf_counter()

    def __exit__(self, *_):
        self.report(time.perf_counter() - self.began)
