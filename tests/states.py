"""Saved states as plain arrays, for tests that compare runs."""

import re

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath


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
