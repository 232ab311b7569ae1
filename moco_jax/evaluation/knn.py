"""Weighted nearest-neighbour classification of features, a score without training.

It is that of InstDisc, section 3.4. The bank is gone through in blocks while each query keeps
the best it has seen: memory does not grow with the bank, and votes of fewer neighbours, or at
another temperature, are read off the same neighbours.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from moco_jax.base.threads import in_parts
from moco_jax.data.sources.labels import MISSING
from moco_jax.evaluation.decide import UNDECIDED, decide
from moco_jax.evaluation.search_on_cores import OnCores
from moco_jax.evaluation.search_on_devices import OnDevices
from moco_jax.parallel import mesh as mesh_lib

QUERIES = 512  # queries that a device compares at once
BANK = 8192  # rows of the bank they are compared with at once
VOTES = 1024  # queries whose votes are counted at once
ALIGNMENT = 64  # bytes


def unit(features: np.ndarray) -> np.ndarray:
    """Scale `features` `[N, D]` to unit length, float32; a zero vector stays zero."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def own_devices(queries: int, block: int) -> Mesh:
    """Make a mesh of this host's devices, or of its first where not each has `block` queries.

    Every device then compares as many at once as one alone would: cosines are equal to the bit.
    """
    devices = jax.local_devices()
    return mesh_lib.create_mesh(devices if queries >= block * len(devices) else devices[:1])


def _is_this_cpu(mesh: Mesh) -> bool:
    """Whether all devices of `mesh` are this process's CPU."""
    here = jax.process_index()
    return all(d.platform == "cpu" and d.process_index == here for d in mesh.devices.flat)


def _aligned(rows: int, width: int) -> np.ndarray:
    """Make zeros float32 `[rows, width]` that begin where JAX on a CPU needs no copy of them."""
    size = 4 * rows * width
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].view(np.float32).reshape(rows, width)


def _scale(features: np.ndarray, out: np.ndarray) -> None:
    """Write `unit` of `features` to `out`, on all cores."""

    def write(some: slice) -> None:
        out[some] = unit(features[some])

    in_parts(write, len(features))


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
        self.k, self.number = k, 0
        self._waiting, self._filled = _aligned(bank_block, queries.shape[1]), 0
        scaled = np.empty(queries.shape, np.float32)
        _scale(queries, scaled)
        comparer = OnCores if _is_this_cpu(self.mesh) else OnDevices
        self._comparer = comparer(scaled, k, self.mesh, block)

    def add(self, features: np.ndarray) -> None:
        """Compare the bank's next rows `[n, D]`, of any length."""
        while len(features):
            taken = features[: len(self._waiting) - self._filled]
            _scale(taken, self._waiting[self._filled :][: len(taken)])
            self._filled += len(taken)
            features = features[len(taken) :]
            if self._filled == len(self._waiting):
                self._compare()

    def _compare(self) -> None:
        self._comparer.compare(self._waiting, self.number, self._filled)
        self.number, self._filled = self.number + self._filled, 0

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines float32 `[M, k]`, descending, and rows int32 `[M, k]`.

        Rows are counted in the order of `add`; k is the bank's size where that is smaller.
        """
        if self._filled:
            self._compare()
        k = min(self.k, self.number)
        cosines, rows = self._comparer.result()
        return cosines[:, :k], rows[:, :k]


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
