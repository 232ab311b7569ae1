"""TensorFlow's counter-based random numbers, bit for bit, in JAX: Philox 4x32-10.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). With it the devices draw the
very views that `augment.py` draws on the host. All is arithmetic on uint32, as JAX has no 64-bit
integers unless told.
"""

import jax
import jax.numpy as jnp

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key before each further round
_SCRAMBLING_KEY = (0x3EC8F720, 0x02461E29)

Words = tuple[jax.Array, ...]


def _multiply(a: int, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the high and the low 32 bits of `a` times `b`, by halves of sixteen bits."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    low, cross = a_low * b_low, a_high * b_low
    middle = (low >> 16) + (cross & 0xFFFF) + a_low * b_high
    return a_high * b_high + (cross >> 16) + (middle >> 16), (low & 0xFFFF) | (middle << 16)


def philox(counter: Words, key: Words) -> Words:
    """Compute one block of random bits for each counter: four uint32 arrays of one shape.

    `counter`: four arrays of that shape. `key`: two uint32 arrays of a shape that broadcasts to
    theirs.
    """
    shape = jnp.broadcast_shapes(*(x.shape for x in (*counter, *key)))

    def turn(number: int, words: Words) -> Words:
        by = jnp.uint32(number)
        first, second = (k + by * jnp.uint32(w) for k, w in zip(key, _WEYL, strict=True))
        high_0, low_0 = _multiply(_MULTIPLIERS[0], words[0])
        high_1, low_1 = _multiply(_MULTIPLIERS[1], words[2])
        return high_1 ^ words[1] ^ first, low_1, high_0 ^ words[3] ^ second, low_0

    start = tuple(jnp.broadcast_to(x, shape) for x in counter)
    return jax.lax.fori_loop(0, ROUNDS, turn, start)


def uniforms(seed: int, high: jax.Array, low: jax.Array, count: int) -> jax.Array:
    """Draw what `tf.random.stateless_uniform(alg='philox')` draws for each of B seeds.

    A seed is `[seed, high * 2**32 + low]`.

    Args:
        seed: the first int64 of TensorFlow's seed.
        high: uint32 `[B]`, the upper half of the second.
        low: uint32 `[B]`, the lower half.
        count: numbers for each.

    Returns:
        float32 `[B, count]` in 0..1, 1 excluded.
    """
    of_seed = (jnp.full_like(low, (seed >> shift) & 0xFFFFFFFF) for shift in (0, 32))
    scrambled = philox((*of_seed, low, high), tuple(jnp.uint32(k) for k in _SCRAMBLING_KEY))
    first, second, *rest = (word[:, None] for word in scrambled)
    block = jnp.arange(-(-count // 4), dtype=jnp.uint32)[None]
    bits = jnp.stack(philox((block, jnp.zeros_like(block), *rest), (first, second)), axis=-1)
    # The low 23 bits become the fraction of a float between 1 and 2.
    floats = jax.lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32) - 1
    return floats.reshape(len(low), -1)[:, :count]
