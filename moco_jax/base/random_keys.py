"""Random keys for JAX, made from all bits of a seed."""

import jax

_WORD = 32


def of_seed(seed: int) -> jax.Array:
    """Return the random key of `seed`, a whole number from 0 to 2**63 - 1.

    `jax.random.key` drops what is above 32 bits where JAX has no 64-bit numbers: 0 and 2**32 would
    be one seed. Below 2**32 the key is the one of `jax.random.key`.
    """
    low, high = seed & (1 << _WORD) - 1, seed >> _WORD
    key = jax.random.key(low)
    return jax.random.fold_in(key, high) if high else key
