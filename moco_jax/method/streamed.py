"""InfoNCE without all logits in memory: block after block of keys, forward and backward.

Every device goes through its own part of the dictionary with running maxima and sums, as attention
does that never holds its weights; what crosses between devices is six numbers a query (`Sums`), and
for the gradient one vector more.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from moco_jax.parallel.mesh import AXIS

LOGITS = 2**20  # in one block of all queries and some keys, about
FEWEST = 256  # keys in a block, at least

# query, own and query_index, as `losses` takes them
Whole = tuple[jax.Array, jax.Array, jax.Array | None]


class KeySet(NamedTuple):
    """Negatives of all queries, as `info_nce.info_nce` takes them.

    Attributes:
        keys: `[S, n, C]`, unit vectors.
        counts: bool `[S, n]`, which keys count; None where all do.
        example: int32 `[S, n]`, the example each was made from; None where it does not matter.
    """

    keys: jax.Array
    counts: jax.Array | None = None
    example: jax.Array | None = None


class Statistics(NamedTuple):
    """What is measured of each query over its negatives, `[B]` each.

    Attributes:
        closer: int32, negatives that are not farther than the positive; one whose cosine is NaN is
            not.
        cosine: sum of cosines.
        counted: negatives that counted.
        effective: as how many equal ones they weigh, `(sum e)^2 / sum e^2` with e = exp(q.k / tau).
    """

    closer: jax.Array
    cosine: jax.Array
    counted: jax.Array
    effective: jax.Array


class Sums(NamedTuple):
    """Running sums of each query, `[B]` each; e = exp(logit - top).

    Attributes:
        top: the largest logit, the positive's among them.
        total, squares: sums of e and of e squared, the positive's not among them.
        closer, cosine, counted: as in `Statistics`.
        pull: `[B, C]`, sum of e times the key; None where it was not asked for.
    """

    top: jax.Array
    total: jax.Array
    squares: jax.Array
    closer: jax.Array
    cosine: jax.Array
    counted: jax.Array
    pull: jax.Array | None


def _blocks(negatives: KeySet, query_index: jax.Array | None, queries: int):
    """Cut negatives into blocks for so many `queries`.

    Returns:
        How many blocks there are, and a function of a block's number: where it starts, its keys and
        which of them count for each query. The last block ends with the keys: those that it has in
        common with the one before count once, or where `overlap` is asked for in both.
    """
    keys, counts, example = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), negatives)
    rows = keys.shape[0]
    size = min(rows, max(FEWEST, LOGITS // queries))

    def block(number: jax.Array | int, overlap: bool = False):
        start = jnp.minimum(number * size, rows - size)

        def part(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, size)

        keep = jnp.ones((1, size), bool)
        if rows % size and not overlap:
            keep = (start + jnp.arange(size) >= number * size)[None]
        if counts is not None:
            keep &= part(counts)[None]
        if query_index is not None and example is not None:
            keep &= part(example)[None] != query_index[:, None]
        return start, part(keys), keep

    return -(-rows // size), block


def _products(query: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.einsum("bc,nc->bn", query, keys, precision="highest")


def _sums(
    query: jax.Array,
    own: jax.Array,
    query_index: jax.Array | None,
    negatives: KeySet,
    temperature: float,
    with_pull: bool,
) -> Sums:
    """Sum up the negatives at hand."""
    number, block = _blocks(negatives, query_index, len(query))
    zeros = jnp.zeros_like(own)

    def add(i: jax.Array | int, sums: Sums) -> Sums:
        _, keys, keep = block(i)
        cosine = _products(query, keys)
        logits = jnp.where(keep, cosine / temperature, -jnp.inf)
        top = jnp.maximum(sums.top, logits.max(1))
        shrink, e = jnp.exp(sums.top - top), jnp.exp(logits - top[:, None])
        pull = sums.pull
        if pull is not None:
            pull = pull * shrink[:, None] + jnp.einsum("bn,nc->bc", e, keys, precision="highest")
        return Sums(
            top=top,
            total=sums.total * shrink + e.sum(1),
            squares=sums.squares * shrink**2 + (e * e).sum(1),
            # Not `>=`, which NaN never is: a query of NaNs would be nearest to its own key.
            closer=sums.closer + jnp.sum(keep & ~(cosine < own[:, None]), 1, dtype=jnp.int32),
            cosine=sums.cosine + jnp.where(keep, cosine, 0).sum(1),
            counted=sums.counted + jnp.broadcast_to(keep, cosine.shape).sum(1, dtype=own.dtype),
            pull=pull,
        )

    start = Sums(
        top=own / temperature,
        total=zeros,
        squares=zeros,
        closer=jnp.zeros(own.shape, jnp.int32),
        cosine=zeros,
        counted=zeros,
        pull=jnp.zeros_like(query) if with_pull else None,
    )
    return add(0, start) if number == 1 else jax.lax.fori_loop(0, number, add, start)


def _divided(mesh: Mesh | None, function: Callable, out: P) -> Callable:
    """Run `function(whole, negatives)` on every device, with its own part of the negatives."""
    if mesh is None:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=(P(), P(None, AXIS)), out_specs=out, check_vma=False
    )


def _forward(
    whole: Whole, negatives: KeySet, temperature: float, mesh: Mesh | None, with_pull: bool
):
    """Compute losses and statistics, and for the gradient the sums and all exponents' sum."""

    def local(whole: Whole, negatives: KeySet) -> Sums:
        query, own, query_index = whole
        sums = _sums(query, own, query_index, negatives, temperature, with_pull)
        if mesh is None:
            return sums
        top = jax.lax.pmax(sums.top, AXIS)
        shrink = jnp.exp(sums.top - top)
        added = jax.lax.psum(
            sums._replace(
                total=sums.total * shrink,
                squares=sums.squares * shrink**2,
                pull=None if sums.pull is None else sums.pull * shrink[:, None],
            ),
            AXIS,
        )
        return added._replace(top=top)

    sums = _divided(mesh, local, P())(whole, negatives)
    own_logit = whole[1] / temperature
    exponents = sums.total + jnp.exp(own_logit - sums.top)
    losses = jnp.log(exponents) + (sums.top - own_logit)
    statistics = Statistics(
        closer=sums.closer,
        cosine=sums.cosine,
        counted=sums.counted,
        effective=sums.total**2 / jnp.maximum(sums.squares, jnp.finfo(sums.squares.dtype).tiny),
    )
    return (losses, statistics), (sums, exponents)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def losses(
    query: jax.Array,
    own: jax.Array,
    query_index: jax.Array | None,
    negatives: KeySet,
    temperature: float,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, "Statistics"]:
    """Compute InfoNCE of each query over the negatives that count, `[B]` in nats.

    `log(1 + sum_i exp((q.k_i - own) / tau))`. Differentiable in `query`, `own` and the
    negatives' keys; the statistics are not.

    Args:
        query: `[B, C]`, at least float32, whole on every device.
        own: `[B]`, cosine of each query and its positive.
        query_index: int32 `[B]`: negatives of the same index do not count; None: all do.
        negatives: divided over devices on the middle axis.
        temperature: tau.
        mesh: the device mesh, or None on one device.
    """
    return _forward((query, own, query_index), negatives, temperature, mesh, False)[0]


def _save(query, own, query_index, negatives, temperature, mesh):
    whole = query, own, query_index
    found, (sums, exponents) = _forward(whole, negatives, temperature, mesh, True)
    return found, (whole, negatives, sums, exponents)


def _gradient(temperature: float, mesh: Mesh | None, saved, cotangents):
    (query, _, query_index), negatives, sums, exponents = saved
    slope = cotangents[0] / (exponents * temperature)  # of e

    def local(whole, negatives: KeySet) -> jax.Array:
        """Pull each key at hand towards the queries that it is a likely answer to."""
        query, top, slope, query_index = whole
        number, block = _blocks(negatives, query_index, len(query))

        def add(i: jax.Array | int, found: jax.Array) -> jax.Array:
            start, keys, keep = block(i, True)
            logits = jnp.where(keep, _products(query, keys) / temperature, -jnp.inf)
            weight = slope[:, None] * jnp.exp(logits - top[:, None])
            moved = jnp.einsum("bn,bc->nc", weight, query, precision="highest")
            return jax.lax.dynamic_update_slice_in_dim(found, moved, start, 0)

        found = jnp.zeros((negatives.keys[..., 0].size, query.shape[1]), query.dtype)
        found = jax.lax.fori_loop(0, number, add, found)
        return found.reshape(negatives.keys.shape).astype(negatives.keys.dtype)

    # Where nobody asks for the keys' gradient, the compiler leaves this out.
    keys = _divided(mesh, local, P(None, AXIS))((query, sums.top, slope, query_index), negatives)
    return slope[:, None] * sums.pull, -slope * sums.total, None, KeySet(keys)


losses.defvjp(_save, _gradient)
