"""Features arrive in order while a few batches are under way, and hosts do not run far ahead."""

import types

import jax
import numpy as np
import pytest

from moco_jax.evaluation import ahead, features
from moco_jax.parallel import mesh as mesh_lib

BATCH = 16


@pytest.mark.parametrize("number", [1, 2 * BATCH, 6 * BATCH - 3])
def test_features_are_those_of_one_batch_after_the_other(monkeypatch, number):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 4, 4, 3), np.uint8)
    sound = rng.random(100) < 0.8
    asked = rng.permutation(100)[:number]
    made = []

    def batches(source, recipe, indices, workers):
        for some in indices:
            made.append(len(some))
            yield {"image": images[some], "ok": sound[some]}

    monkeypatch.setattr(features.labelled_views, "evaluation_batches", batches)
    mesh = mesh_lib.create_mesh()
    encode = jax.jit(
        lambda x: x.reshape(len(x), -1)[:, :5] / 255, out_shardings=mesh_lib.replicated(mesh)
    )
    stream = features.stream(None, None, asked, BATCH, 0, mesh, encode)
    first = next(stream)
    assert len(made) == min(-(-number // BATCH), features.AHEAD + 1)
    found, kept = (np.concatenate(x) for x in zip(first, *stream, strict=True))
    np.testing.assert_array_equal(kept, asked[sound[asked]])
    np.testing.assert_array_equal(found, np.asarray(encode(images[kept])))


def test_a_host_is_at_most_so_many_steps_ahead(monkeypatch):
    waited = []
    monkeypatch.setattr(ahead, "jax", types.SimpleNamespace(block_until_ready=waited.append))
    bound = ahead.Ahead(3)
    for step in range(10):
        bound.wait(step)
        assert waited == list(range(step - 2))
