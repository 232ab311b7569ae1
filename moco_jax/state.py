"""TrainState: one frozen pytree with everything that a run is; how it is created and laid over devices.

What is saved is exactly this. The place in the data follows from `examples_seen`, the queue's slot from its
pointer, and randomness from the seed and these counters.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from moco_jax import mesh as mesh_lib
from moco_jax.dictionary import Queue

FORMAT_VERSION = 1


@flax.struct.dataclass
class TrainState:
    """A run at one moment.

    Attributes:
        step: int32, steps taken, skipped ones included.
        examples_seen: uint32 `[2]`, low and high word of the number of examples drawn.
        skipped_steps: int32, steps that were not applied because loss or gradients were not finite.
        params: the query encoder's parameters, at least float32.
        batch_stats: the query encoder's BatchNorm running statistics.
        key_params: the momentum encoder's parameters, ready for the next key pass.
        key_batch_stats: the momentum encoder's own running statistics (they are not averaged).
        opt_state: the optimizer's state.
        dictionary: the keys of earlier steps.
    """

    step: jax.Array
    examples_seen: jax.Array
    skipped_steps: jax.Array
    params: Any
    batch_stats: Any
    key_params: Any
    key_batch_stats: Any
    opt_state: Any
    dictionary: Queue


def add_examples(seen: jax.Array, number: int) -> jax.Array:
    """`seen` (uint32 `[2]`: low word, high word) plus `number` < 2**32."""
    low = seen[0] + jnp.uint32(number)
    return jnp.stack([low, seen[1] + (low < seen[0]).astype(jnp.uint32)])


def count_examples(seen: jax.Array) -> int:
    """The Python integer that the two words of `seen` mean."""
    low, high = np.asarray(seen).tolist()
    return high << 32 | low


def initial_state(
    seed: int,
    encoder: nn.Module,
    optimizer: optax.GradientTransformation,
    image_size: int,
    batch_size: int,
    queue_size: int,
    dim: int,
    dtype=jnp.float32,
    channels: int = 3,
) -> TrainState:
    """The state before the first step; both encoders equal, the queue random. Pure: jit it to place it.

    `dtype` is that of images and queue: float32, or float64 for a float64 run. `channels`: of the images.
    """
    encoder_rng, queue_rng = jax.random.split(jax.random.key(seed))
    images = jnp.zeros((1, image_size, image_size, channels), dtype)
    variables = encoder.init(encoder_rng, images, train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        examples_seen=jnp.zeros(2, jnp.uint32),
        skipped_steps=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        key_params=jax.tree.map(jnp.copy, params),
        key_batch_stats=jax.tree.map(jnp.copy, batch_stats),
        opt_state=optimizer.init(params),
        dictionary=Queue.create(queue_rng, queue_size, batch_size, dim, dtype),
    )


def shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """The layout of each leaf of `state`: queue slots divided over devices, the rest on every device."""
    everywhere, by_row = mesh_lib.replicated(mesh), mesh_lib.sharded(mesh, axis=1)
    layout = jax.tree.map(lambda _: everywhere, state)
    return layout.replace(dictionary=layout.dictionary.replace(keys=by_row, index=by_row))
