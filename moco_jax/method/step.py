"""One training step, pure: `make_train_step` chooses the function of a method and binds it.

`train_step(state, batch) -> (state, metrics)` touches nothing but its arguments. It knows arrays
and encoders, no files and no clock; the training loop calls it, and tests compare it with PyTorch.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from moco_jax.encoders import Encoder
from moco_jax.method.batch import Batch, Metrics, as_they_come
from moco_jax.method.choice import Method, dictionary_class
from moco_jax.method.encoding import Encoding
from moco_jax.method.end_to_end import end_to_end
from moco_jax.method.memory_bank import memory_bank
from moco_jax.method.moco import moco
from moco_jax.method.moco_v3 import moco_v3
from moco_jax.method.state import TrainState
from moco_jax.method.step_setup import Schedule, StepSetup

__all__ = ["Batch", "Metrics", "as_they_come", "make_train_step"]

Algorithm = Callable[[StepSetup, TrainState, Batch], tuple[TrainState, Metrics]]

# Who encodes keys, and whether keys outlive their step -> the function of the method.
ALGORITHMS: dict[tuple[str, bool], Algorithm] = {
    ("momentum", True): moco,
    ("momentum", False): moco_v3,
    ("query", False): end_to_end,
    ("none", True): memory_bank,
}


def make_train_step(
    encoder: Encoder,
    optimizer: optax.GradientTransformation,
    learning_rate: Schedule,
    momentum: Schedule,
    method: Method,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    accumulate: int = 1,
    backbone_groups: int | None = None,
    dtype=jnp.float32,
    mesh: Mesh | None = None,
    views: Callable[[Batch], tuple[jax.Array, jax.Array]] = as_they_come,
    keep_features: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Make the step of a method, a pure function to jit.

    The state arrives with the momentum encoder already averaged for this step, and leaves with it
    averaged for the next one: the same sequence as the papers', in one pass with the optimizer.

    Args:
        encoder: called with `train=True` and its `batch_stats` mutable.
        optimizer: from `optimizers.py`, without learning rate.
        learning_rate: the rate as a function of `state.schedule_step`.
        momentum: m of the momentum encoder, as a function of `state.schedule_step`.
        method: which keys, which negatives, which loss.
        mean: per channel, of images scaled to 0..1.
        std: per channel, as `mean`.
        seed: of what is drawn within a step (negatives from the memory bank, permutations).
        accumulate: parts in which the backbone goes through a batch, see `encoding.Encoding`.
        backbone_groups: BatchNorm groups of the backbone in a batch, None without BatchNorm.
        dtype: the encoder's compute dtype.
        mesh: the device mesh, or None on one device.
        views: makes query and key view, uint8 `[B, H, W, channels]` each, of a batch.
        keep_features: add to the metrics `features` `[B, D]`, which the query encoder pooled of the
            first view before this step changed it; they are computed in any case.

    Returns:
        A function of state and batch to the new state and metrics. These are scalars: `loss`, those
        of `info_nce.info_nce`, `spread`, `grad_norm`, `lr`, `finite`, and `momentum` where there is
        a momentum encoder.
    """
    encoding = Encoding(encoder, method, mean, std, dtype, accumulate, backbone_groups, mesh)
    setup = StepSetup(method, encoding, optimizer, learning_rate, momentum, views, seed, mesh)
    algorithm = ALGORITHMS[method.key_encoder, dictionary_class(method.dictionary).persists]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        state, metrics = algorithm(setup, state, batch)
        if not keep_features:
            del metrics["features"]
        return state, metrics

    return train_step
