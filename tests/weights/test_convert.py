"""The bridge's command line: a workdir becomes the authors' checkpoint; bad input is one line."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

from moco_jax.weights import bridge
from tests import states
from tests.training.test_loop import tiny


def convert(*words):
    """Status, output and errors; TensorFlow's own lines left out."""
    env = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "moco_jax.convert", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, errors


@pytest.fixture
def run(tmp_path):
    """A workdir with one checkpoint, and the state in it.

    Its encoders differ, and its queue's pointer is not at 0.
    """
    # The batch does not divide the queue: keys above its size must not come along.
    config, workdir = tiny(arch="resnet10", queue_size=160), epath.Path(tmp_path / "run")
    return workdir, states.save_drawn(workdir, config, 3, pointer=1)


def test_a_workdir_becomes_the_authors_checkpoint_and_wrong_wishes_one_line(run, tmp_path):
    pytest.importorskip("torchvision", reason="pip install '.[torch]'")
    workdir, state = run
    out = tmp_path / "moco.pth.tar"
    status, said, errors = convert(workdir, out, "--format=moco", "--verify")
    assert (status, errors) == (0, [])
    assert "queue of 160" in said
    assert said.count("largest difference") == 4

    again = bridge.load(str(out), stem="cifar_stride2")
    for ours, params, stats in (
        (again.query, state.params, state.batch_stats),
        (again.key, state.key_params, state.key_batch_stats),
    ):
        expected = jax.tree.map(np.asarray, {"params": params, "batch_stats": stats})
        if not expected["batch_stats"].get("head"):
            expected["batch_stats"].pop("head", None)
        jax.tree.map(np.testing.assert_array_equal, ours, expected)
    slots = np.asarray(state.dictionary.keys)
    assert slots.shape == (3, 64, 128)
    assert state.dictionary.pointer == 1
    np.testing.assert_array_equal(again.queue, slots[[1, 2, 0]].reshape(192, 128)[-160:])

    status, _, errors = convert(out, tmp_path / "x.pth", "--format=timm", "--arch=resnet50")
    assert (status, errors) == (
        2,
        [f"error: {out}: these are weights of resnet10, not of resnet50"],
    )
    assert not (tmp_path / "x.pth").exists()
