"""First state of a run that starts from weights of an earlier one (`init_from`).

The backbone is always taken, or the run is refused; head and predictor where their shapes are those
of this run; the momentum encoder's own weights where there are any. Optimizer, schedules and
counters are those of a new run.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from moco_jax.base import digests
from moco_jax.base.errors import UserError
from moco_jax.method import optimizers
from moco_jax.method.dictionary import Queue
from moco_jax.method.state import TrainState, key_part
from moco_jax.parallel import mesh
from moco_jax.training.assembly import Program
from moco_jax.weights import bridge
from moco_jax.weights.pretrained import Variables, joined, part

HEADS = ("head", "predictor")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that fit a run.

    Attributes:
        query: `{'params', 'batch_stats'}` of the parts that are taken, NumPy arrays.
        key: the same of the momentum encoder; empty where it becomes a copy of the query encoder.
        queue: keys `[K, dim]`, the oldest first; None: the queue starts fresh, or there is none.
        remarks: a sentence on what is taken and one on each thing that is not.
    """

    query: Variables
    key: Variables
    queue: np.ndarray | None
    remarks: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The SHA-256 of all arrays, by which the hosts of a run compare them."""
        return digests.of_tree((self.query, self.key, self.queue))


def read(config: ConfigDict, like: TrainState) -> Weights:
    """Read the weights in the workdir, file or folder `config.init_from`, as far as they fit.

    Args:
        config: of the run.
        like: shapes and dtypes of its state.

    Raises:
        UserError: nothing readable there, or another backbone than the run's.
    """
    place = config.init_from
    stem = "" if config.arch.startswith("vit_") else config.stem
    try:
        pretrained = bridge.load(place, config.arch, stem)
    except UserError as error:
        raise UserError(f"init_from={place}: {str(error).removeprefix(f'{place}: ')}") from error
    shapes = {"params": like.params, "batch_stats": like.batch_stats}
    fault = _fault(part(pretrained.query, "backbone"), part(shapes, "backbone"))
    if fault:
        raise UserError(
            f"init_from={place}: {bridge.describe(pretrained)} does not fit this run: {fault}"
        )
    on_top, remarks = _on_top(pretrained.query, shapes)
    taken = ["backbone", *on_top]
    key, queue = {}, None
    if config.key_encoder == "momentum":
        own = [name for name in taken if part(pretrained.key or {}, name)]
        key = _only(pretrained.key or {}, own)
        parts = " and ".join(own)
        remarks.append(
            f"the momentum encoder has its own {parts}, averaged once with the query encoder's"
            if own
            else "the momentum encoder starts as a copy of the query encoder"
        )
    if config.dictionary == "queue":
        same_head = "head" in taken and bool(part(key, "head"))
        why = _unfit_queue(pretrained.queue, config, same_head)
        remarks.append(f"the queue starts fresh: {why}" if why else "the queue is taken along")
        queue = None if why else pretrained.queue
    first = f"weights from {place}: {', '.join(taken)} of {bridge.describe(pretrained)}"
    remarks = [first, *remarks, *pretrained.remarks]
    return Weights(_only(pretrained.query, taken), key, queue, tuple(remarks))


def _on_top(offered: Variables, wanted: Variables) -> tuple[list[str], list[str]]:
    """Choose the parts after the backbone to take from those `offered`; explain each other one."""
    taken, remarks = [], []
    for name in HEADS:
        ours, theirs = part(wanted, name), part(offered, name)
        fault = _fault(theirs, ours)
        if theirs and not ours:
            remarks.append(f"the {name} is left out: this run has none")
        elif ours and not theirs:
            remarks.append(f"the {name} starts fresh: there are no weights of one")
        elif ours and fault:
            remarks.append(f"the {name} starts fresh: {fault}")
        elif ours:
            taken.append(name)
    return taken, remarks


def _only(variables: Variables, names: list[str]) -> Variables:
    return joined(**{name: part(variables, name) for name in names})


def _fault(offered: Variables, wanted: Variables) -> str:
    """Name the first difference between the shapes of two trees of variables; '' without one."""
    ours, theirs = (traverse_util.flatten_dict(dict(tree)) for tree in (wanted, offered))
    for path in (*ours, *theirs):
        name = "/".join(path)
        if path not in theirs:
            return f"{name} is missing"
        if path not in ours:
            return f"{name} has no place here"
        if tuple(ours[path].shape) != tuple(theirs[path].shape):
            return f"{name} has shape {tuple(theirs[path].shape)}, not {tuple(ours[path].shape)}"
    return ""


def _unfit_queue(queue: np.ndarray | None, config: ConfigDict, same_head: bool) -> str:
    """Say why the queue of the weights does not fit this run; '' where it does."""
    size = (config.queue_size, config.dim)
    if queue is None:
        return "there is none among the weights"
    if config.queue_start == "empty":
        return "queue_start='empty' counts keys of this run's images only"
    if not same_head:
        return "its keys are of another head"
    if queue.shape != size:
        return (
            f"it has {queue.shape[0]} keys of {queue.shape[1]} numbers, not {size[0]} of {size[1]}"
        )
    if not np.allclose(np.linalg.norm(queue, axis=-1), 1, atol=1e-3):
        return "its keys are no unit vectors"
    return ""


def begin(program: Program, weights: Weights, momentum: float) -> TrainState:
    """Make the first state of a run that starts from `weights`, laid over the devices.

    The momentum encoder arrives at a step averaged for it already (`step.make_train_step`); weights
    of its own are averaged once here, as Algorithm 1 does before the first keys. A copy of the
    query encoder would not change by it.

    Args:
        program: of the run.
        weights: from `read`, with the same `program.abstract`.
        momentum: m at the first step.
    """
    layout = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
    imported = (weights.query, weights.key, weights.queue)
    on_devices = mesh.to_every_device(program.mesh, imported)

    def planted(fresh: TrainState, query: Variables, key: Variables, queue: Any) -> TrainState:
        params = fresh.params | _as(query.get("params", {}), fresh.params)
        stats = fresh.batch_stats | _as(query.get("batch_stats", {}), fresh.batch_stats)
        state = dataclasses.replace(fresh, params=params, batch_stats=stats)
        if fresh.key_params:
            own = _as(key.get("params", {}), fresh.key_params)
            own_stats = _as(key.get("batch_stats", {}), fresh.key_batch_stats)
            new = {name: params[name] for name in own}
            copied = jax.tree.map(jnp.copy, (key_part(params), key_part(stats)))
            state = dataclasses.replace(
                state,
                key_params=copied[0] | optimizers.moving_average(own, new, momentum),
                key_batch_stats=copied[1] | own_stats,
            )
        if queue is None:
            return state
        return dataclasses.replace(state, dictionary=_filled(fresh.dictionary, queue))

    plant = jax.jit(planted, out_shardings=layout, donate_argnums=0)
    return plant(program.initial(), *on_devices)


def _as(tree: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Cast `tree` to the dtypes of the parts of `like` that it has."""
    return {
        name: jax.tree.map(lambda x, y: x.astype(y.dtype), tree[name], like[name]) for name in tree
    }


def _filled(fresh: Queue, keys: jax.Array) -> Queue:
    """Fill the queue with these `keys` `[K, dim]`, the oldest first.

    They are of no image of this run, so their index is -1.
    """
    index = jnp.full((1, len(keys)), -1, jnp.int32)
    whole = dataclasses.replace(fresh, keys=keys[None].astype(fresh.keys.dtype), index=index)
    return whole.for_batch_size(fresh.keys.shape[1])
