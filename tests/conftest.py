"""Eight forced CPU devices for every test, quiet TensorFlow, programs compiled once for all."""

import contextlib
import os
import shutil
from pathlib import Path

from moco_jax.base import allocator
from moco_jax.base.storage import quick_reads, retries
from moco_jax.parallel import xla_flags
from tests import bucket_server, xla

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags.with_fast_convolutions(
    f"{xla.flags(8)} {os.environ.get('XLA_FLAGS', '')}"
)
allocator.keep_freed_memory()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As many processes run as there are cores: threads of PyTorch and BLAS would wait for each other,
# and they do so at full speed.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Programs that were compiled once are found by every process of the tests, of later runs too: a
# program's name there is a digest of all that it is compiled from.
PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
MOST = 2**30  # bytes of programs that are kept
if "PYTEST_XDIST_WORKER" not in os.environ:
    if PROGRAMS.exists() and sum(path.stat().st_size for path in PROGRAMS.iterdir()) > MOST:
        shutil.rmtree(PROGRAMS)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(PROGRAMS)

# Torch, where it is installed, must be imported before TensorFlow: the other way round a process
# crashes.
with contextlib.suppress(ImportError):
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)

import jax
import pytest

from tests import smallest  # noqa: F401 - makes its encoder known

# Files that take longest, in this order: both processes of a run are then busy to the end.
LONGEST_FIRST = (
    "training/test_loop.py",
    "test_notebook.py",
    "training/test_restart.py",
    "evaluation/test_evaluate.py",
    "data/views/test_augment.py",
    "parallel/test_collectives.py",
    "encoders/test_vit.py",
    "training/test_going_on.py",
    "method/test_step.py",
    "encoders/test_encoders.py",
    "training/test_checkpoint.py",
    "method/test_step_v3.py",
    "method/test_methods.py",
    "weights/test_convert.py",
    "encoders/test_resnet.py",
    "training/test_bad_steps.py",
    "ablation/test_ablation.py",
    "data/views/test_device_views.py",
    "method/test_streamed.py",
    "doctor/test_doctor.py",
)


def pytest_collection_modifyitems(config, items):
    """Put the files of LONGEST_FIRST before all others."""
    places = {str(config.rootpath / "tests" / name): n for n, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


@pytest.fixture
def float64():
    """JAX computes in float64 within the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def _served():
    """Serve gs://bucket from this machine until the tests end."""
    with (
        bucket_server.running(bucket_server.Network()) as network,
        pytest.MonkeyPatch.context() as m,
    ):
        m.setenv("STORAGE_EMULATOR_HOST", network.address)
        yield network


@pytest.fixture
def network(_served, monkeypatch):
    """Give the network before gs://bucket, without faults; requests are soon made again."""
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.0002)
    monkeypatch.setattr(quick_reads, "_refused", set())
    _served.reset()
    yield _served
    _served.reset()


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Free the memory of each file's programs; those of all would take nine gigabytes."""
    yield
    jax.clear_caches()
