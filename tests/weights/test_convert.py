"""The command line of the bridge: a workdir and files, verified, and bad input in one line."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from moco_jax.weights import bridge
from tests import states
from tests.test_train import tiny, train


def convert(*words):
    """Status, output and errors; TensorFlow's own lines left out."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, "-m", "moco_jax.convert", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, errors


def test_a_workdir_becomes_the_authors_checkpoint_and_a_wrong_wish_one_line(tmp_path):
    pytest.importorskip("torchvision", reason="pip install '.[torch]'")
    workdir, out = tmp_path / "run", tmp_path / "moco.pth.tar"
    # The batch does not divide the queue: keys above its size must not come along.
    config = tiny(stop_at_step=3, monitor_every=0, queue_size=160)
    train.train(config, str(workdir), set())
    status, said, errors = convert(workdir, out, "--format=moco", "--verify")
    assert (status, errors) == (0, [])
    assert "queue of 160" in said
    assert said.count("largest difference") == 4

    state = states.load(workdir, 3)
    again = bridge.load(str(out), stem="cifar_stride2")
    for ours, params, stats in (
        (again.query, "params", "batch_stats"),
        (again.key, "key_params", "key_batch_stats"),
    ):
        expected = {"params": getattr(state, params), "batch_stats": getattr(state, stats)}
        jax.tree.map(np.testing.assert_array_equal, ours, jax.tree.map(np.asarray, expected))
    keys = np.asarray(state.dictionary.keys)
    assert keys.shape == (3, 64, 128)
    assert state.dictionary.pointer == 0
    np.testing.assert_array_equal(again.queue, keys.reshape(192, 128)[-160:])

    status, _, errors = convert(out, tmp_path / "x.pth", "--format=timm", "--arch=resnet50")
    assert (status, errors) == (2, ["error: these are weights of resnet10, not of resnet50"])
    assert not (tmp_path / "x.pth").exists()


def test_words_that_mean_nothing_are_refused(tmp_path):
    status, _, errors = convert(tmp_path / "none.pth", "--format=timm")
    assert status == 2
    assert errors == ["error: two names are wanted: a workdir or file of weights, and the file to write"]  # fmt: skip
