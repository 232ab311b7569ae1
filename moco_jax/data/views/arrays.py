"""The functions on arrays in which views are written once, by one name in JAX and in TensorFlow.

Hosts draw the parameters of views, and turn hues, in a TensorFlow graph, and devices in JAX:
`operations` have the same lines for both, over these functions.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple


class Arrays(NamedTuple):
    """NumPy's functions of these names, and `cast(x, dtype)`, of one library.

    `take(x, index)` takes along the first axis; `concatenate` and `stack` join there.
    """

    any: Callable[[Any], Any]
    argmax: Callable[[Any], Any]
    cast: Callable[[Any, str], Any]
    concatenate: Callable[[list[Any]], Any]
    exp: Callable[[Any], Any]
    floor: Callable[[Any], Any]
    maximum: Callable[[Any, Any], Any]
    minimum: Callable[[Any, Any], Any]
    round: Callable[[Any], Any]
    sqrt: Callable[[Any], Any]
    stack: Callable[[list[Any]], Any]
    take: Callable[[Any, Any], Any]
    where: Callable[[Any, Any, Any], Any]


@functools.cache
def of_jax() -> Arrays:
    """Return JAX's functions."""
    import jax.numpy as jnp

    return Arrays(
        any=jnp.any,
        argmax=jnp.argmax,
        cast=lambda x, dtype: jnp.asarray(x).astype(dtype),
        concatenate=jnp.concatenate,
        exp=jnp.exp,
        floor=jnp.floor,
        maximum=jnp.maximum,
        minimum=jnp.minimum,
        round=jnp.round,
        sqrt=jnp.sqrt,
        stack=jnp.stack,
        take=lambda x, index: jnp.asarray(x)[index],
        where=jnp.where,
    )


@functools.cache
def of_tensorflow() -> Arrays:
    """Return TensorFlow's functions."""
    import tensorflow as tf

    return Arrays(
        any=tf.reduce_any,
        argmax=tf.argmax,
        cast=tf.cast,
        concatenate=lambda arrays: tf.concat(arrays, 0),
        exp=tf.exp,
        floor=tf.floor,
        maximum=tf.maximum,
        minimum=tf.minimum,
        round=tf.round,
        sqrt=tf.sqrt,
        stack=tf.stack,
        take=tf.gather,
        where=tf.where,
    )
