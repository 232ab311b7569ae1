"""Keeps the nearest rows of each query on the devices, which share the queries.

The program of GPUs and TPUs, and of CPUs of several processes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from moco_jax.parallel import mesh as mesh_lib


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


class OnDevices:
    """Compares queries with a bank on the devices of a mesh."""

    def __init__(self, queries: np.ndarray, k: int, mesh: Mesh, block: int):
        """Search for the `k` nearest rows of `queries` `[M, D]` of unit length.

        Each device of `mesh` compares `block` of them at once.
        """
        self._count, width = queries.shape
        block = min(block, max(-(-self._count // mesh.size), 1)) * mesh.size
        steps = -(-self._count // block)
        padded = np.zeros((steps * block, width), np.float32)
        padded[: self._count] = queries
        self._mesh, self._k, self._update = mesh, k, _compiled(mesh, k)
        self._queries, self._best, self._rows = (
            mesh_lib.divided(mesh, x, axis=1)
            for x in (
                padded.reshape(steps, block, width),
                np.full((steps, block, k), -np.inf, np.float32),
                np.zeros((steps, block, k), np.int32),
            )
        )

    def compare(self, bank: np.ndarray, start: int, count: int) -> None:
        """Compare the first `count` rows of `bank` `[n, D]`, which are the rows from `start` on."""
        # A copy, because the block may still be read when the next rows arrive.
        block = mesh_lib.to_every_device(self._mesh, bank.copy())
        self._best, self._rows = self._update(
            self._best, self._rows, self._queries, block, np.int32(start), np.int32(count)
        )
        jax.block_until_ready(self._best)  # or blocks would pile up in memory

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines float32 `[M, k]`, descending, and rows int32 `[M, k]`."""
        on_hosts = mesh_lib.to_hosts(self._mesh, (self._best, self._rows))
        cosines, rows = (x.reshape(-1, self._k)[: self._count] for x in on_hosts)
        return cosines, rows
