"""The order of examples, by arithmetic on (seed, epoch, position).

There is no shuffle buffer and no stored list. An epoch's order is a keyed bijection of range(N):
a Feistel network on the next power of four, walked until the result is below N. The batch of any
step of a billion-image run is known at once.
"""

import numpy as np

ROUNDS = 8
_MASK = 2**64 - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """Mix the bits of `x` (splitmix64's finaliser): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(positions: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the dataset indices int64 `[n]` at `positions` int `[n]` of an epoch.

    For each (seed, epoch) this is a bijection of range(`size`), computed for these positions
    alone.
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask, shift = np.uint64(2**half - 1), np.uint64(half)
    base = np.asarray([(seed * 0x9E3779B97F4A7C15 + epoch) & _MASK], np.uint64)
    keys = _mix(
        _mix(base) + np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    )
    values = np.array(positions, np.uint64)
    walking = np.ones(len(values), bool)
    while walking.any():
        left, right = values[walking] >> shift, values[walking] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        values[walking] = left << shift | right
        walking = values >= np.uint64(size)
    return values.astype(np.int64)


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Return floor(N / B): an epoch drops its last partial batch, as in the authors' code."""
    return size // batch_size


def batch_positions(examples_seen: int, batch_size: int, size: int) -> tuple[int, np.ndarray]:
    """Return the epoch, and positions int64 `[B]` in it, of the batch after `examples_seen`."""
    epoch, start = divmod(examples_seen, steps_per_epoch(size, batch_size) * batch_size)
    return epoch, np.arange(start, start + batch_size, dtype=np.int64)
