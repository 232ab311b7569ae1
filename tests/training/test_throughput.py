"""The clock of a run knows devices by their names; a trace is written even if steps are not run."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from moco_jax.base.errors import UserError
from moco_jax.training import arrivals, throughput
from moco_jax.training.writer import Writer


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU7x", 1153.5),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("cpu", None),
    ],
)
def test_peak_flops(kind, tera):
    assert throughput.peak_flops(kind) == (tera and tera * 1e12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [1, 2, 30])
@pytest.mark.parametrize("value", [0.0, 1e-38, 0.1, 1e38, 3e38, -3e38, float("inf")])
def test_means_of_what_float32_holds_are_right(number, value):
    time = throughput.Clock(4, 100, 0, None)
    for _ in range(number):
        time.count({"grad_norm": jnp.float32(value)})
    assert time.read()["grad_norm"] == pytest.approx(float(np.float32(value)), rel=1e-12)


class Finished(dict):
    """Metrics of a step that is finished at a known time; waiting for it takes until then."""

    def __init__(self, now, time, **metrics):
        super().__init__(metrics)
        self.now, self.time = now, time

    def wait(self):
        self.now[0] = max(self.now[0], self.time)


def test_speed_and_waiting_go_by_when_steps_were_finished(monkeypatch):
    """Batches that come late are waited for only while the devices have nothing to do."""
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    clock = throughput.Clock(10, 100, 0, 3e12)
    monkeypatch.setattr(clock._arrivals, "expect", lambda metrics: metrics)

    def step(asked, given, finished):
        now[0] = asked
        with clock.waiting():
            now[0] = given
        clock.count(Finished(now, finished, loss=np.float32(finished)))

    step(0.0, 1.0, 2.0)
    step(1.0, 1.5, 3.0)  # its batch was there before the step before it was finished
    step(1.5, 5.0, 6.0)  # the devices waited from 3 to 5
    window = clock.cut()
    with clock.pause():  # which begins when the last step is finished
        now[0] = 10.0
    step(10.0, 10.5, 12.0)
    numbers = window.read()  # while the next steps run
    assert numbers["loss"] == pytest.approx(11 / 3)
    assert numbers["images_per_second"] == pytest.approx(3 * 10 / 6)
    assert numbers["waiting_share"] == pytest.approx((1 + 0 + 2) / 6)
    assert numbers["teraflops_per_device"] == pytest.approx(3 / 2)
    assert window.left == pytest.approx(97 * 2)
    numbers = clock.read()
    assert numbers["images_per_second"] == pytest.approx(10 / 2)
    assert numbers["waiting_share"] == pytest.approx(0.5 / 2)


def test_an_error_of_a_step_is_told_to_whoever_reads_its_metrics():
    arrival = arrivals.Arrival()
    arrival.fetch(["loss"], None)
    for look in (arrival.wait, lambda: arrival["loss"], lambda: arrival.time):
        with pytest.raises(TypeError):
            look()


def test_a_writer_keeps_the_order_and_stops_at_the_first_error():
    done, gate = [], threading.Event()
    writer = Writer(before=lambda: done.append("look"), idle=lambda: None)
    first = writer.put(gate.wait)
    later = [writer.put(lambda n=n: done.append(n)) for n in range(3)]
    assert not first.done()
    writer.check()
    gate.set()
    later[-1].result()
    assert done == ["look", *(x for n in range(3) for x in ("look", n))]

    def fail():
        raise UserError("workdir=... is on a full disk")

    after = [writer.put(fail), writer.put(lambda: done.append("more"))]
    for result in after:
        with pytest.raises(UserError, match="full disk"):
            result.result()
    for look in (writer.check, lambda: writer.close(9)):
        with pytest.raises(UserError, match="full disk"):
            look()
    assert "more" not in done


@pytest.mark.parametrize("steps", [range(1, 9), range(4, 9), range(1, 4)])
def test_a_trace_is_written_from_any_start_to_any_end(tmp_path, steps):
    """Steps 3 to 5 are wanted; the run is whole, resumed at 4, or stopped at 3."""
    profile = throughput.Profile((3, 5), epath.Path(tmp_path / "profile"))
    for step in steps:
        profile.before(step)
        profile.after(step, {"loss": jnp.ones(()) * step})
    profile.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_no_trace_without_steps(tmp_path):
    profile = throughput.Profile((0, 0), epath.Path(tmp_path / "profile"))
    for step in (1, 2):
        profile.before(step)
        profile.after(step, {})
    profile.close()
    assert not (tmp_path / "profile").exists()
