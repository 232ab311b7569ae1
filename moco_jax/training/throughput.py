"""Speed of a run, what it waits for, and profiler traces of its steps."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
from etils import epath

from moco_jax.base import files
from moco_jax.method.batch import Metrics
from moco_jax.training.arrivals import Arrival, Arrivals, means

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
    """Averages metrics between two readings, and measures throughput and waiting.

    It goes by the times at which finished steps arrived from the devices, and makes no device wait.

    Attributes:
        total: the last step of the run.
        pauses: seconds of all pauses so far.
    """

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
        self._arrivals = Arrivals()
        self._before: Arrival | None = None  # the last step of the window before
        self._window: list[Arrival] = []
        self._waits: list[tuple[float, float]] = []  # of each step for its batch: from, to
        self._paused = self.pauses = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Give a context in which the batch of the next step is waited for."""
        began = time.perf_counter()
        yield
        self._waits.append((began, time.perf_counter()))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Give a context whose time does not count; steps that are under way are finished first.

        What happens in a pause needs the state after these steps, and waits for them anyway.
        """
        last = self._window[-1] if self._window else self._before
        if last is not None:
            last.wait()
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._paused, self.pauses = self._paused + seconds, self.pauses + seconds

    def count(self, metrics: Metrics) -> Arrival:
        """Add the metrics of one more step, which are still on the device."""
        self.step += 1
        self._window.append(self._arrivals.expect(metrics))
        return self._window[-1]

    def cut(self) -> "Window":
        """Return the steps since the last cut, to be read when they are finished."""
        window = Window(self, self.step, self._before, self._window, self._waits, self._paused)
        self._before, self._window, self._waits, self._paused = self._window[-1], [], [], 0.0
        return window

    def read(self) -> dict[str, float]:
        """Return means since the last cut; this waits for the steps."""
        return self.cut().read()

    @property
    def age(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.born

    def close(self) -> None:
        """Fetch no more than what was counted."""
        self._arrivals.close()


class Window:
    """Some steps in a row, and how long they took.

    Attributes:
        left: seconds from their end to that of the run, at their pace; once they were read.
    """

    def __init__(
        self,
        clock: Clock,
        step: int,
        before: Arrival | None,
        steps: list[Arrival],
        waits: list[tuple[float, float]],
        paused: float,
    ):
        """Take in `steps`, of which the last is called `step`.

        Args:
            clock: that counted them.
            step: the number of the last one.
            before: the step before the first; None where the clock was made then.
            steps: one or more.
            waits: when each of them began to wait for its batch, and had it.
            paused: seconds that do not count.
        """
        self._clock, self._step, self._before = clock, step, before
        self._steps, self._waits, self._paused = steps, waits, paused
        self.left = 0.0

    def read(self) -> dict[str, float]:
        """Return means of the metrics, speed and waiting; this waits until the steps are done."""
        clock = self._clock
        numbers = means(self._steps)
        began = clock.born if self._before is None else self._before.time
        elapsed = max(self._steps[-1].time - began - self._paused, 1e-9)
        seconds = elapsed / len(self._steps)
        numbers["images_per_second"] = clock.batch_size / seconds
        numbers["waiting_share"] = min(self._waited() / elapsed, 1.0)
        if clock.flops:
            numbers["teraflops_per_device"] = clock.flops / seconds / 1e12
            if clock.peak:
                numbers["mfu"] = clock.flops / seconds / clock.peak
        self.left = (clock.total - self._step) * seconds
        return numbers

    def _waited(self) -> float:
        """Return the seconds in which devices had finished all they had, and no batch was there."""
        waited, before = 0.0, self._before
        for step, (began, ended) in zip(self._steps, self._waits, strict=False):
            waited += max(ended - (began if before is None else max(began, before.time)), 0.0)
            before = step
        return waited


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
            # JAX writes to disks alone.
            remote = files.is_remote(self.place)
            self._here = tempfile.mkdtemp(prefix="profile_") if remote else str(self.place)
            jax.profiler.start_trace(self._here)
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
            if files.is_remote(self.place):
                files.send(self._here, self.place)
                shutil.rmtree(self._here)
