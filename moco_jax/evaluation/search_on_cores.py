"""Keeps the nearest rows of each query on a CPU, on all of its cores.

XLA's top_k is a partial sort on one core, and takes longer than the products that it sorts. Here
a block's cosines are compared with the least that each query keeps; the few that are larger are
sorted in, by threads of NumPy that share the queries.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moco_jax.base.threads import in_parts

QUERIES = 64  # whose cosines a thread looks through at once: 2 MB with a block of 8192 rows
_SIGN, _ROW = np.uint32(2**31), np.uint64(2**32 - 1)


def _entries(cosines: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Write each neighbour as one number uint64: the larger, the nearer, no two are equal.

    The cosine stands before the row. The bits of a float32 become a number in the floats' order
    where the sign is turned, and of negative ones all others. Rows are turned too: of equal
    cosines the smaller row is nearer.
    """
    bits = (cosines + np.float32(0)).view(np.uint32)  # -0 becomes 0, its equal
    bits ^= np.where(bits >= _SIGN, ~np.uint32(0), _SIGN)
    return (bits.astype(np.uint64) << np.uint64(32)) | (_ROW - rows.astype(np.uint64))


def cosines_of(entries: np.ndarray) -> np.ndarray:
    """Read the cosines float32 of `entries`; -inf where there is no neighbour yet."""
    bits = (entries >> np.uint64(32)).astype(np.uint32)
    bits ^= np.where(bits >= _SIGN, _SIGN, ~np.uint32(0))
    return np.where(entries > 0, bits.view(np.float32), np.float32(-np.inf))


def rows_of(entries: np.ndarray) -> np.ndarray:
    """Read the rows int32 of `entries`; 0 where there is no neighbour yet."""
    return np.where(entries > 0, _ROW - (entries & _ROW), 0).astype(np.int32)


def keep_nearest(kept: np.ndarray, cosines: np.ndarray, start: int) -> None:
    """Renew the entries `kept` uint64 `[m, k]`, the least first, by one more block of the bank.

    Args:
        kept: 0 where there is no neighbour yet.
        cosines: float32 `[m, n]`; NaN is nobody's neighbour.
        start: the row of the first of the n.
    """
    queries, k = kept.shape
    number = cosines.shape[1]
    floor = cosines_of(kept[:, 0])
    nearer = cosines > floor[:, None]
    found = np.count_nonzero(nearer)
    if number > k and found > queries * (k + number // 32):
        # Too many to sort in, as in the first block: the k-th largest of the block is a floor too.
        comparable = np.fmax(cosines, np.float32(-np.inf))
        comparable.partition(number - k, axis=1)
        kth = comparable[:, number - k]
        floor = np.maximum(floor, np.nextafter(kth, np.float32(-np.inf)))
        nearer = cosines > floor[:, None]
    places = np.flatnonzero(nearer)
    if not len(places):
        return
    query, column = np.divmod(places, number)
    counts = np.bincount(query, minlength=queries)
    most = counts.max()
    among = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    entries = np.zeros((queries, most + k), np.uint64)
    entries[:, :k] = kept
    entries[query, k + among] = _entries(cosines[query, column], start + column)
    entries.partition(most, axis=1)
    kept[:] = entries[:, most:]


@jax.jit
def _multiply(queries: jax.Array, bank: jax.Array) -> jax.Array:
    return jnp.matmul(queries, bank.T, precision="highest")


class OnCores:
    """Compares queries with a bank on all cores of this host's CPU."""

    def __init__(self, queries: np.ndarray, k: int, mesh: Mesh, block: int):
        """Search for the `k` nearest rows of `queries` `[M, D]` of unit length.

        `block` of them are compared at once. `mesh`: CPU devices of this process, which are all
        the same cores.
        """
        count, width = queries.shape
        block = min(block, max(count, 1))
        self._device = mesh.devices.flat[0]
        self._queries = []
        for start in range(0, count, block):
            some = queries[start : start + block]
            filled = np.concatenate([some, np.zeros((block - len(some), width), np.float32)])
            self._queries.append(jax.device_put(filled, self._device))
        self._block, self._kept = block, np.zeros((count, k), np.uint64)

    def compare(self, bank: np.ndarray, start: int, count: int) -> None:
        """Compare the first `count` rows of `bank` `[n, D]`, which are the rows from `start` on.

        `bank` may be written to after this: all products have been made.
        """
        # JAX takes memory as it is where that begins at a multiple of 64 bytes.
        rows = jax.device_put(bank, self._device)
        for n, queries in enumerate(self._queries):
            kept = self._kept[n * self._block :][: self._block]
            cosines = np.asarray(_multiply(queries, rows))[:, :count]

            def keep(some: slice, kept=kept, cosines=cosines) -> None:
                keep_nearest(kept[some], cosines[some], start)

            in_parts(keep, len(kept), QUERIES)
            del cosines, keep  # or two blocks of cosines are held at once

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines float32 `[M, k]`, descending, and rows int32 `[M, k]`."""
        cosines = np.empty(self._kept.shape, np.float32)
        rows = np.empty(self._kept.shape, np.int32)

        def read(some: slice) -> None:
            self._kept[some].sort(axis=1)
            descending = self._kept[some, ::-1]
            cosines[some], rows[some] = cosines_of(descending), rows_of(descending)

        in_parts(read, len(cosines))
        return cosines, rows
