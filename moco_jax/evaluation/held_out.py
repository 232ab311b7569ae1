"""Splits images into those that are searched and those that are classified."""

import numpy as np

from moco_jax.data.sources import Source


def choose(
    source: Source, queries: Source | None, limit: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the images of the bank and the queries: int64 index arrays.

    Without a source of `queries`, a tenth of the images (1,000 at most) is set apart. `limit`:
    bank size at most, 0 for no limit.
    """
    shuffled = np.random.default_rng(seed).permutation(len(source))
    if queries is None:
        apart = min(max(len(source) // 10, 1), 1000)
        return np.sort(shuffled[apart:][: limit or None]), np.sort(shuffled[:apart])
    return np.sort(shuffled[: limit or None]), np.arange(len(queries))
