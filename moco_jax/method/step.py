"""One training step, pure: the paper's Algorithm 1 and its relatives, as `choice.Method` chooses its parts.

`train_step(state, batch) -> (state, metrics)` touches nothing but its arguments. It knows arrays and encoders,
no files and no clock; `loop.py` calls it, `tests/test_step*.py` compare it with PyTorch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from moco_jax.base import random_keys
from moco_jax.encoders import Encoder
from moco_jax.method import info_nce, nce, optimizers
from moco_jax.method.choice import Method
from moco_jax.method.encoding import Encoding
from moco_jax.method.state import TrainState, add_examples, all_finite, key_part
from moco_jax.parallel import mesh as mesh_lib

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class Batch:
    """Two views of the same images in the same order, or what `make_train_step`'s `views` makes them of.

    Attributes:
        query: uint8 `[B, H, W, C]`; None where the devices hold all images.
        key: as `query`.
        index: int32 `[B]`, each example's place in the dataset.
        query_view: where images arrive as crops, the drawn parameters of what is left to do, `[B, ...]` each.
        key_view: as `query_view`, of the keys.
        images: where the devices hold all images, these: uint8 `[N, H * W * C]`, whole on every device.
        epoch: with `images`, int32 `[B]`, each example's epoch.
    """

    query: Any
    key: Any
    index: jax.Array
    query_view: Any = None
    key_view: Any = None
    images: Any = None
    epoch: Any = None


def as_they_come(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Query and key views of a batch that brings them finished."""
    return batch.query, batch.key


def exchange(
    x: jax.Array, bn_groups: int, shuffle_groups: int, mesh: Mesh | None = None
) -> jax.Array:
    """Shuffled BN as a transposition: `x` `[B, ...]` in an order that gives each group other company.

    The batch is viewed as `[G/S, S, S, B/(G S), ...]` and its middle axes change places (G = `bn_groups`,
    S = `shuffle_groups`, G where smaller): each group of S takes an equal part of all S. Its own inverse, so
    it also puts the keys back in order. Does the work of the paper's random permutation (v1, section 3.3).
    Both sides are held divided over the devices: the compiler then moves each device's share and no more, where
    it would otherwise gather the whole batch.
    """
    span = min(shuffle_groups, bn_groups)
    blocks = mesh_lib.divide(x, mesh).reshape(bn_groups // span, span, span, -1, *x.shape[1:])
    return mesh_lib.divide(blocks.swapaxes(1, 2).reshape(x.shape), mesh)


def shuffled(
    encode: Callable[[jax.Array], tuple[jax.Array, Any]],
    images: jax.Array,
    method: Method,
    rng: jax.Array,
    mesh: Mesh | None,
) -> tuple[jax.Array, Any]:
    """`encode` of `images` `[B, ...]` in other company, as `method.shuffle` says; keys come back in order."""
    if method.shuffle == "none":
        return encode(images)
    if method.shuffle == "permutation":
        order = jax.random.permutation(rng, images.shape[0])
        keys, stats = encode(mesh_lib.divide(images[order], mesh))
        return mesh_lib.divide(keys[jnp.argsort(order)], mesh), stats
    groups = method.bn_groups, method.shuffle_groups, mesh
    keys, stats = encode(exchange(images, *groups))
    return exchange(keys, *groups), stats


def make_train_step(
    encoder: Encoder,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    momentum: Callable[[jax.Array], jax.Array | float],
    method: Method,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    accumulate: int = 1,
    backbone_groups: int | None = None,
    dtype=jnp.float32,
    mesh: Mesh | None = None,
    views: Callable[[Batch], tuple[jax.Array, jax.Array]] = as_they_come,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step as a pure function to jit (v1, Algorithm 1; v3, Algorithm 1).

    The state arrives with the momentum encoder already averaged for this step, and leaves with it averaged
    for the next one: the same sequence as the papers', in one pass with the optimizer.

    Args:
        encoder: called with `train=True` and its `batch_stats` mutable.
        optimizer: from `optimizers.py`, without learning rate.
        learning_rate: the rate as a function of `state.schedule_step`.
        momentum: m of the momentum encoder, as a function of `state.schedule_step`.
        method: which keys, which negatives, which loss.
        mean: per channel, of images scaled to 0..1.
        std: per channel, as `mean`.
        seed: of what is drawn within a step (negatives from the memory bank, permutations).
        accumulate: parts in which the backbone goes through a batch, see `encoding.Encoding`.
        backbone_groups: BatchNorm groups of the backbone in a batch, None without BatchNorm.
        dtype: the encoder's compute dtype.
        mesh: the device mesh, or None on one device.
        views: makes query and key view, uint8 `[B, H, W, channels]` each, of a batch.

    Returns:
        A function of state and batch. Its metrics are scalars: `loss`, those of `info_nce.info_nce`, `spread`,
        `grad_norm`, `lr`, `finite`, and `momentum` where there is a momentum encoder.
    """
    encoding = Encoding(encoder, mean, std, dtype, accumulate, backbone_groups, mesh)

    def keys_of(params: Any, stats: Any, views: list[jax.Array], rng: jax.Array):
        """Keys `[B, C]` of each of `views`, and the encoder's statistics after them."""
        # With a queue the last keys to be made are the last to be enqueued; v3 makes them in the order of views.
        numbers = list(range(len(views)))
        keys: list[Any] = [None] * len(views)
        for number in numbers if method.dictionary == "queue" else reversed(numbers):

            def encode(images: jax.Array, stats: Any = stats) -> tuple[jax.Array, Any]:
                return encoding.key(params, stats, images)

            draw = jax.random.fold_in(rng, number)
            keys[number], stats = shuffled(encode, views[number], method, draw, mesh)
        return keys, stats

    def compare(
        query: jax.Array, key: jax.Array, state: TrainState, index: jax.Array, rng: jax.Array
    ):
        """Loss, metrics and the dictionary (its constant may have been set) of one set of queries."""
        dictionary, own = state.dictionary, index if method.mask_same_example else None
        if method.dictionary == "batch":
            # A query's own key stands among the others and is left out by its place.
            place = index if method.mask_same_example else jnp.arange(len(index), dtype=jnp.int32)
            loss, metrics = info_nce.info_nce(
                query, key, mesh_lib.divide(key, mesh)[None], method.temperature, mesh,
                query_index=place, negative_index=place[None],
            )  # fmt: skip
            return loss, metrics, dictionary
        if method.dictionary == "queue":
            negatives = dictionary.negatives(real_only=method.queue_start == "empty")
        else:
            negatives = dictionary.draw(rng, method.negatives)
        if method.loss == "nce":
            loss, constant, metrics = nce.nce(
                query, key, negatives.keys, method.temperature, dictionary.constant, dictionary.size, mesh
            )  # fmt: skip
            return loss, metrics, dictionary.replace(constant=constant)
        loss, metrics = info_nce.info_nce(
            query, key, negatives.keys, method.temperature, mesh, counts=negatives.counts,
            query_index=own, negative_index=None if own is None else negatives.index,
        )  # fmt: skip
        return loss, metrics, dictionary

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.fold_in(random_keys.of_seed(seed), state.examples_seen[1]), state.examples_seen[0])  # fmt: skip
        first, second = views(batch)
        query_views = [first, second] if method.symmetric else [first]
        key_views = [second, first] if method.symmetric else [second]
        keys: list[jax.Array] = []
        key_stats = state.key_batch_stats
        if method.key_encoder == "momentum":
            keys, key_stats = keys_of(state.key_params, key_stats, key_views, rng)
        elif method.key_encoder == "none":
            keys = [state.dictionary.entries(batch.index)]
        keys = [jax.lax.stop_gradient(key) for key in keys]

        def loss_fn(params: Any):
            stats, queries = state.batch_stats, []
            for images in query_views:
                query, stats = encoding.query(params, stats, images)
                queries.append(query)
            found = keys
            if method.key_encoder == "query":
                found, stats = keys_of(params, stats, key_views, rng)
            terms, dictionary = [], state.dictionary
            for query, key in zip(queries, found, strict=True):
                loss, metrics, dictionary = compare(query, key, state, batch.index, rng)
                terms.append((loss, {**metrics, "spread": info_nce.spread(query)}))
            scale = 2 * method.temperature if method.times_2t else 1
            total = scale * sum(loss for loss, _ in terms)
            mean_metrics = jax.tree.map(lambda *x: sum(x) / len(x), *[m for _, m in terms])
            return total, (stats, mean_metrics, dictionary, jax.lax.stop_gradient(queries[0]))

        (loss, (stats, metrics, dictionary, queries)), grads = jax.value_and_grad(
            loss_fn, has_aux=True
        )(state.params)
        grad_norm = optax.global_norm(grads)
        rate = learning_rate(state.schedule_step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, state.params, updates)
        entering: Any = keys
        if method.dictionary == "memory_bank":
            moved = state.dictionary.moved(batch.index, queries, method.bank_momentum)
            entering = moved, dictionary.constant
        # The whole update counts or none of it, so it is looked at before any of it is written. The sums below store
        # nothing: at most they read parameters and the optimizer's state once more, 0.22 GB beside the 24.8 GB that a
        # ResNet-50's step moves on a TPU v5e with 32 images. The momentum encoder, another half of that, needs no
        # reading: where the norm of the parameters is finite none is above 2e19, and an average of such numbers
        # (0 <= m <= 1) cannot overflow.
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        finite &= jnp.isfinite(optax.global_norm(params))
        finite &= all_finite((stats, key_stats, opt_state, entering))

        def if_finite(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        metrics = {"loss": loss, **metrics, "grad_norm": grad_norm, "lr": rate, "finite": finite}
        key_params = state.key_params
        if method.key_encoder == "momentum":
            # That of the next step, whose key pass these parameters are for.
            m = momentum(state.schedule_step + 1)
            key_params = optimizers.moving_average(state.key_params, key_part(params), m)
            metrics["momentum"] = jnp.asarray(m, rate.dtype)

        if method.dictionary == "queue":
            for key in reversed(keys):
                dictionary = dictionary.enqueue(key, batch.index, accept=finite)
        elif method.dictionary == "memory_bank":
            constant = jnp.where(finite, dictionary.constant, state.dictionary.constant)
            dictionary = state.dictionary.renew(batch.index, moved, finite)
            dictionary = dictionary.replace(constant=constant)

        new_state = TrainState(
            step=state.step + 1,
            schedule_step=state.schedule_step + 1,
            examples_seen=add_examples(state.examples_seen, batch.index.shape[0]),
            skipped_steps=state.skipped_steps + (~finite).astype(jnp.int32),
            params=if_finite(params, state.params),
            batch_stats=if_finite(stats, state.batch_stats),
            key_params=if_finite(key_params, state.key_params),
            key_batch_stats=if_finite(key_stats, state.key_batch_stats),
            opt_state=if_finite(opt_state, state.opt_state),
            dictionary=dictionary,
        )
        return new_state, metrics

    return train_step
