"""Saved states as plain arrays, and runs that were never trained.

The arrays are for tests that compare runs, the untrained runs for tests of what reads a run.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from moco_jax.parallel import mesh
from moco_jax.training import assembly, checkpoint
from moco_jax.workdir import recipe_check


def drawn(config, pointer=0, seed=0):
    """A state of a run of `config` on one device, every array drawn: both encoders differ."""
    shapes = assembly.program(config, mesh.create_mesh(jax.devices()[:1]), 1437).abstract
    rng = np.random.default_rng(seed)

    def draw(leaf):
        low, high = (-0.3, 0.3) if leaf.ndim > 1 else (0.5, 1.5)
        return jnp.asarray(rng.uniform(low, high, leaf.shape), leaf.dtype)

    state = jax.tree.map(draw, shapes)
    queue = dataclasses.replace(state.dictionary, pointer=jnp.asarray(pointer, jnp.int32))
    return dataclasses.replace(state, dictionary=queue)


def save_drawn(workdir, config, step, pointer=0):
    """As `save`, of such a state, which is returned."""
    state = drawn(config, pointer)
    save(workdir, config, step, state)
    return state


def save(workdir, config, step, state):
    """Make `workdir` that of a run with one checkpoint, of this `state`."""
    recipe_check.claim_workdir(workdir, config.to_dict(), set())
    saving = checkpoint.Checkpoints(workdir, 2)
    saving.save(step, state, config.to_dict(), {})
    saving.close()


def load(workdir, step):
    """Every array of the state saved at `step`: name -> NumPy array."""
    path = epath.Path(workdir) / "checkpoints" / str(step) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(path).item_metadata.tree
        wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        tree = reader.restore(path, ocp.args.PyTreeRestore(restore_args=wanted))
    return flatten(tree)


def flatten(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {
        re.sub(r"[^\w]+", ".", jax.tree_util.keystr(p)).strip("."): np.asarray(x) for p, x in found
    }


def assert_bitwise_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def assert_close(one, other):
    """Equal but for the rounding of sums in another order."""
    assert one.keys() == other.keys()
    for name in one:
        if one[name].dtype.kind == "U":
            assert one[name] == other[name], name
        else:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-5, err_msg=name)
