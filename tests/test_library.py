"""The package as a library: what each public name loads, and the loops of docs/library.md."""

import ast
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import moco_jax
from tests.markdown import ROOT, blocks

# What no public name may load; names that read nothing when called may not load OF_FILES either.
HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "clu",
    "torch",
    "torchvision",
    "sklearn",
    "matplotlib",
)
OF_FILES = ("moco_jax.base.files", "moco_jax.data", "orbax", "PIL")
READS = ("load", "images_in")


@pytest.fixture(scope="module")
def examples():
    """The code of docs/library.md, by what stands in it."""
    found = [
        code
        for language, code in blocks((ROOT / "docs/library.md").read_text())
        if language == "python"
    ]
    return dict(zip(("call", "plain", "linen", "loop", "step"), found, strict=True))


def test_public_names_load_neither_tensorflow_nor_files():
    code = f"""
import sys
import moco_jax
early = [m for m in sys.modules if m.startswith(("jax", "numpy", "flax", "moco_jax."))]
assert not early, sys.modules

def loaded(names):
    return [m for m in sys.modules if any(m == n or m.startswith(n + ".") for n in names)]

reads = {READS}
assert set(reads) < set(moco_jax.__all__)
for name in sorted(moco_jax.__all__, key=lambda name: name in reads):
    getattr(moco_jax, name)
    banned = {HEAVY} if name in reads else {HEAVY + OF_FILES}
    assert not loaded(banned), (name, loaded(banned))
print("no more than that")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no more than that\n"


def test_one_table_lists_every_public_name():
    tree = ast.parse(Path(moco_jax.__file__).read_text())
    (typed,) = [n.body for n in tree.body if isinstance(n, ast.If)]
    seen = {alias.name: n.module for n in typed for alias in n.names}
    assert sorted(moco_jax.PUBLIC) == sorted(moco_jax.__all__) == sorted(seen)
    for name, place in moco_jax.PUBLIC.items():
        assert place in (seen[name], f"{seen[name]}.{name}")
        assert getattr(moco_jax, name).__doc__
        assert name in dir(moco_jax)
    with pytest.raises(AttributeError, match="module 'moco_jax' has no attribute 'queue'"):
        _ = moco_jax.queue


@pytest.mark.parametrize("encoder", ["plain", "linen"])
def test_the_loop_of_the_page_learns(examples, encoder):
    """The loss of a plain function and of a Linen module falls far below chance, log(1 + 512)."""
    names = {}
    exec(compile(examples[encoder], encoder, "exec"), names)
    exec(compile(examples["loop"], "loop", "exec"), names)
    losses = names["losses"]
    assert np.isfinite(losses).all()
    full = np.mean(losses[8:28])  # the queue's eight slots hold real keys
    assert np.mean(losses[-20:]) < 0.75 * full
    assert np.mean(losses[-20:]) < 0.75 * np.log(513)
    assert int(names["state"][3].count) == 512
    assert float(names["metrics"]["top1"]) > 0.2


def test_the_loop_of_the_page_is_short(examples):
    lines = [
        line
        for line in examples["loop"].splitlines()
        if line and not line.startswith(("import", "from"))
    ]
    assert len(lines) <= 30


def test_the_whole_step_of_the_page_runs(examples):
    names = {}
    exec(compile(examples["step"], "step", "exec"), names)
    state, metrics = names["state"], jax.device_get(names["metrics"])
    assert metrics["finite"]
    assert np.isfinite(metrics["loss"])
    assert isinstance(state, moco_jax.TrainState)
    assert (int(state.step), int(state.dictionary.count)) == (1, 64)
