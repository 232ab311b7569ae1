"""Runs of one file with the same settings share their traced programs: tracing takes seconds."""

import jax
import pytest

from moco_jax.training import assembly

# Settings of a run that its program does not know.
OUTSIDE = (
    "eval_batch_size",
    "log_every",
    "minutes",
    "monitor_every",
    "patience",
    "signals",
    "stop_at_step",
    "stop_when",
    "track",
    "workers",
)


@pytest.fixture(scope="module")
def programs():
    """Programs of the file's runs, by what they were built from."""
    return {}


@pytest.fixture
def programs_kept(programs, monkeypatch):
    """Build each program once a file; not for tests that change what programs are built from."""
    build = assembly.program

    def kept(config, mesh, examples, resident_shape=None):
        settings = {name: value for name, value in config.to_dict().items() if name not in OUTSIDE}
        facts = (repr(sorted(settings.items())), mesh, examples, resident_shape)
        facts += (jax.config.jax_enable_x64,)
        if facts not in programs:
            programs[facts] = build(config, mesh, examples, resident_shape)
        return programs[facts]

    monkeypatch.setattr(assembly, "program", kept)
