"""Weighted nearest-neighbour classification of features, a score without training.

It is that of InstDisc, section 3.4. The bank is gone through in blocks while each query keeps
the best it has seen: memory does not grow with the bank, and votes of fewer neighbours, or at
another temperature, are read off the same neighbours.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from moco_jax.data.sources.labels import MISSING
from moco_jax.evaluation.decide import UNDECIDED, decide
from moco_jax.parallel import mesh as mesh_lib

QUERIES = 512  # queries that a device compares at once
BANK = 8192  # rows of the bank they are compared with at once
VOTES = 1024  # queries whose votes are counted at once


def unit(features: np.ndarray) -> np.ndarray:
    """Scale `features` `[N, D]` to unit length, float32; a zero vector stays zero."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


@functools.cache
def _compiled(mesh: Mesh, k: int):
    """Compile the program that shows each query one more block of the bank.

    Queries are divided over the devices.
    """

    def update(best, rows, queries, bank, start, count):
        present = jnp.arange(len(bank)) < count

        def one(block):
            queries, best, rows = block
            cosines = jnp.matmul(queries, bank.T, precision="highest")
            # top_k takes NaN for the largest: a row of NaNs would be the nearest of every query.
            cosines = jnp.where(present & ~jnp.isnan(cosines), cosines, -jnp.inf)
            new, places = jax.lax.top_k(cosines, min(k, len(bank)))
            # Of equal cosines top_k takes the first, so rows that were seen before stand first.
            merged, chosen = jax.lax.top_k(jnp.concatenate([best, new], -1), k)
            known = jnp.concatenate([rows, places + start], -1)
            return merged, jnp.take_along_axis(known, chosen, -1)

        return jax.lax.map(one, (queries, best, rows))

    by_query, whole = P(None, mesh_lib.AXIS), P()
    local = jax.shard_map(
        update,
        mesh=mesh,
        in_specs=(by_query, by_query, by_query, whole, whole, whole),
        out_specs=(by_query, by_query),
    )
    return jax.jit(local, donate_argnums=(0, 1))


def own_devices(queries: int, block: int) -> Mesh:
    """Make a mesh of this host's devices, or of its first where not each has `block` queries.

    Every device then compares as many at once as one alone would: cosines are equal to the bit.
    """
    devices = jax.local_devices()
    return mesh_lib.create_mesh(devices if queries >= block * len(devices) else devices[:1])


class Search:
    """Finds the k nearest rows of a bank that passes by in parts and is not kept.

    Ties go to the earlier row, as in one sort of the whole bank.
    """

    def __init__(
        self,
        queries: np.ndarray,
        k: int,
        mesh: Mesh | None = None,
        block: int = QUERIES,
        bank_block: int = BANK,
    ):
        """Search for the neighbours of `queries` `[M, D]`, of any length; M may be 0.

        `mesh`: the devices that share the queries, None: those of this host. `block` queries (on
        each device) and `bank_block` rows are compared at once.
        """
        self.mesh = own_devices(len(queries), block) if mesh is None else mesh
        self.k, self.count, self.number = k, len(queries), 0
        width = queries.shape[1]
        block = min(block, max(-(-self.count // self.mesh.size), 1)) * self.mesh.size
        steps = -(-self.count // block)
        padded = np.zeros((steps * block, width), np.float32)
        padded[: self.count] = unit(queries)
        self.queries, self._best, self._rows = (
            mesh_lib.divided(self.mesh, x, axis=1)
            for x in (
                padded.reshape(steps, block, width),
                np.full((steps, block, k), -np.inf, np.float32),
                np.zeros((steps, block, k), np.int32),
            )
        )
        self._waiting, self._filled = np.zeros((bank_block, width), np.float32), 0
        self._update = _compiled(self.mesh, k)

    def add(self, features: np.ndarray) -> None:
        """Compare the bank's next rows `[n, D]`, of any length."""
        while len(features):
            taken = features[: len(self._waiting) - self._filled]
            self._waiting[self._filled :][: len(taken)] = unit(taken)
            self._filled += len(taken)
            features = features[len(taken) :]
            if self._filled == len(self._waiting):
                self._compare()

    def _compare(self) -> None:
        # A copy, because the block may still be read when the next rows arrive.
        bank = mesh_lib.to_every_device(self.mesh, self._waiting.copy())
        start, count = np.int32(self.number), np.int32(self._filled)
        self._best, self._rows = self._update(
            self._best, self._rows, self.queries, bank, start, count
        )
        jax.block_until_ready(self._best)  # or blocks would pile up in memory
        self.number, self._filled = self.number + self._filled, 0

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines float32 `[M, k]`, descending, and rows int32 `[M, k]`.

        Rows are counted in the order of `add`; k is the bank's size where that is smaller.
        """
        if self._filled:
            self._compare()
        on_hosts = mesh_lib.to_hosts(self.mesh, (self._best, self._rows))
        k = min(self.k, self.number)
        cosines, rows = (x.reshape(-1, self.k)[: self.count, :k] for x in on_hosts)
        return cosines, rows


def nearest(
    bank: np.ndarray,
    queries: np.ndarray,
    k: int,
    block: int = QUERIES,
    bank_block: int = BANK,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k rows of `bank` `[N, D]` nearest by cosine to each row of `queries` `[M, D]`.

    `block`, `bank_block` and `mesh` as in `Search`.

    Returns:
        Cosines float32 `[M, k]`, descending, and rows int32 `[M, k]`; of equal cosines the
        smaller row first.
    """
    search = Search(queries, k, mesh, block, min(bank_block, max(len(bank), 1)))
    search.add(bank)
    return search.result()


def votes(
    cosines: np.ndarray, classes: np.ndarray, ks: Sequence[int], temperatures: Sequence[float]
) -> dict[tuple[int, float], np.ndarray]:
    """Classify queries by votes of their nearest, each weighing `exp(cosine / temperature)`.

    This is done for a grid of numbers of neighbours and temperatures.

    Args:
        cosines: float `[M, K]`, descending.
        classes: int `[M, K]`, of these neighbours; -1 for one without a label, which has no
            vote.
        ks: numbers of neighbours that vote; K where larger.
        temperatures: tau of the weights.

    Returns:
        int64 `[M]` for every (k, temperature), as `decide` names them: no class where two have
        as many votes, or where a query's features are NaN; -1 where none of the neighbours has a
        vote.
    """
    # Class numbers may be far apart: memory is taken only for the classes that are there.
    values, places = np.unique(classes, return_inverse=True)
    places = places.reshape(np.shape(classes))
    labelled, voting = classes >= 0, values >= 0
    decided = {(k, t): np.zeros(len(cosines), np.int64) for k in ks for t in temperatures}
    for start in range(0, len(cosines), VOTES):
        some = slice(start, start + VOTES)
        near, named = cosines[some], places[some]
        rows = np.arange(len(near))[:, None]
        for t in temperatures:
            # Without any neighbour this is -inf minus -inf, a vote of NaN.
            with np.errstate(invalid="ignore"):
                weights = np.exp((near - near[:, :1]).astype(np.float64) / t)
            sums, counted = np.zeros((len(near), len(values))), 0
            for k in sorted(ks):
                new = slice(counted, k)
                np.add.at(sums, (rows, named[:, new]), weights[:, new])
                counted = k
                place = decide(np.where(voting, sums, -1))
                best = np.where(place == UNDECIDED, UNDECIDED, values[np.maximum(place, 0)])
                decided[k, t][some] = np.where(labelled[some, :k].any(1), best, MISSING)
    return decided


def classify(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, temperature: float
) -> np.ndarray:
    """Classify queries by votes of k nearest rows, each weighing `exp(cosine / temperature)`.

    Args:
        bank: `[N, D]` features of known class.
        labels: int `[N]`, -1 for a row that has no vote.
        queries: `[M, D]`.
        k: neighbours that vote; all N where N is smaller.
        temperature: tau of the weights.

    Returns:
        int `[M]`, -1 where none has a vote.
    """
    cosines, rows = nearest(bank, queries, k)
    return votes(cosines, np.asarray(labels)[rows], [k], [temperature])[k, temperature]
