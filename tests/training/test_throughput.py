"""The clock of a run knows devices by their names; a trace is written even if steps are not run."""

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from moco_jax.training import throughput


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
