"""TrainState: one frozen pytree with everything that a run is, created and laid over devices.

What is saved is exactly this. The place in the data follows from `examples_seen`, the queue's slot
from its pointer, and randomness from the seed and these counters.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from moco_jax.base import random_keys
from moco_jax.encoders import Encoder
from moco_jax.parallel import mesh as mesh_lib

FORMAT_VERSION = 2


@flax.struct.dataclass
class TrainState:
    """The whole state of a run at one moment, as a frozen pytree.

    Attributes:
        step: int32, steps taken, skipped ones included.
        schedule_step: int32, the step that schedules see: `step`, unless the batch size was changed
            on the way; then the step at which a run with this batch would have seen as many
            examples.
        examples_seen: uint32 `[2]`, low and high word of the number of examples drawn.
        skipped_steps: int32, steps that were not applied, because loss, gradients or what they lead
            to were not finite.
        params: the query encoder's parameters, at least float32.
        batch_stats: the query encoder's BatchNorm running statistics.
        key_params: the momentum encoder's parameters, ready for the next key pass; empty where
            there is none.
        key_batch_stats: the momentum encoder's own running statistics (they are not averaged).
        opt_state: the optimizer's state.
        dictionary: the keys of earlier steps; None where negatives are those of the batch.
    """

    step: jax.Array
    schedule_step: jax.Array
    examples_seen: jax.Array
    skipped_steps: jax.Array
    params: Any
    batch_stats: Any
    key_params: Any
    key_batch_stats: Any
    opt_state: Any
    dictionary: Any  # a `Dictionary` or None


def add_examples(seen: jax.Array, number: int) -> jax.Array:
    """Add `number` < 2**32 to `seen` (uint32 `[2]`: low word, high word)."""
    low = seen[0] + jnp.uint32(number)
    return jnp.stack([low, seen[1] + (low < seen[0]).astype(jnp.uint32)])


def count_examples(seen: jax.Array) -> int:
    """Convert the two words of `seen` to a Python integer."""
    low, high = np.asarray(seen).tolist()
    return high << 32 | low


def all_finite(tree: Any) -> jax.Array:
    """Say whether every number in `tree`, a pytree of arrays, is finite: a bool scalar.

    True where there is no number.
    """
    # Counted, not `jnp.all`: the TPU's compiler puts sums over the same arrays together, as these
    # and those of a norm, and would read the arrays once more for anything else.
    found = [
        jnp.sum(jnp.where(jnp.isfinite(x), 0.0, 1.0)) == 0
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(found)) if found else jnp.asarray(True)


def key_part(tree: Any) -> Any:
    """Select those parameters or statistics of the query encoder that the momentum encoder has."""
    return {name: part for name, part in tree.items() if name != "predictor"}


def initial_state(
    seed: int,
    encoder: Encoder,
    optimizer: optax.GradientTransformation,
    image_size: int,
    make_dictionary: Callable[[jax.Array], Any],
    *,
    momentum_encoder: bool = True,
    dtype=jnp.float32,
    channels: int = 3,
) -> TrainState:
    """Create the state before the first step, both encoders equal. Pure: jit it to place it.

    Args:
        seed: of weights and dictionary.
        encoder: its parameters are created.
        optimizer: its state is.
        image_size: side of a view in pixels.
        make_dictionary: from a random key to the dictionary, or None.
        momentum_encoder: whether there is one.
        dtype: of images: float32, or float64 for a float64 run.
        channels: of images.
    """
    encoder_rng, dictionary_rng = jax.random.split(random_keys.of_seed(seed))
    images = jnp.zeros((1, image_size, image_size, channels), dtype)
    variables = encoder.init(encoder_rng, images, train=False, method=encoder.predict)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    copied = jax.tree.map(jnp.copy, (key_part(params), key_part(batch_stats)))
    key_params, key_batch_stats = copied if momentum_encoder else ({}, {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        schedule_step=jnp.zeros((), jnp.int32),
        examples_seen=jnp.zeros(2, jnp.uint32),
        skipped_steps=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        key_params=key_params,
        key_batch_stats=key_batch_stats,
        opt_state=optimizer.init(params),
        dictionary=make_dictionary(dictionary_rng),
    )


def for_batch_size(state: TrainState, batch_size: int) -> TrainState:
    """Return `state` for steps of another `batch_size`.

    The dictionary keeps its keys and their order, and schedules keep their place.
    """
    kept, seen = state.dictionary, count_examples(state.examples_seen)
    return dataclasses.replace(
        state,
        dictionary=None if kept is None else kept.for_batch_size(batch_size),
        schedule_step=jnp.asarray(seen // batch_size, jnp.int32),
    )


def shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Say how each leaf of `state` lies on the devices.

    The dictionary says it of its own arrays; the rest is whole on every device.
    """
    layout = jax.tree.map(lambda _: mesh_lib.replicated(mesh), state)
    kept = state.dictionary
    return layout.replace(dictionary=None if kept is None else kept.shardings(mesh))
