"""One training step, pure: the paper's Algorithm 1 and its symmetric form.

`train_step(state, batch) -> (state, metrics)` touches nothing but its arguments. It knows arrays and encoders,
no files and no clock; `train.py` calls it, `tests/test_step.py` compares it with PyTorch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from moco_jax import contrastive, optim
from moco_jax import mesh as mesh_lib
from moco_jax.state import TrainState, add_examples


@flax.struct.dataclass
class Batch:
    """Two views of the same images in the same order, or what `make_train_step`'s `views` makes them of.

    Attributes:
        query: uint8 `[B, H, W, 3]`; None where the devices hold all images.
        key: as `query`.
        index: int32 `[B]`, each example's place in the dataset.
        query_view: where images arrive as crops, the drawn parameters of what is left to do, `[B, ...]` each.
        key_view: as `query_view`, of the keys.
        images: where the devices hold all images, these: uint8 `[N, H * W * 3]`, whole on every device.
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


def to_network_input(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype
) -> jax.Array:
    """uint8 images `[B, H, W, 3]` -> `(x / 255 - mean) / std` per channel, worked out in at least float32."""
    exact = jnp.promote_types(dtype, jnp.float32)
    center, scale = jnp.asarray(mean, exact), jnp.asarray(std, exact)
    return ((images.astype(exact) / 255 - center) / scale).astype(dtype)


def make_train_step(
    encoder: nn.Module,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    *,
    momentum: float,
    temperature: float,
    symmetric: bool,
    bn_groups: int,
    shuffle_groups: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype=jnp.float32,
    mesh: Mesh | None = None,
    views: Callable[[Batch], tuple[jax.Array, jax.Array]] = as_they_come,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step of MoCo v1 and v2 as a pure function to jit (v1, Algorithm 1).

    The state arrives with the momentum encoder already averaged for this step, and leaves with it averaged
    for the next one: the same sequence as the paper's, in one pass with the optimizer.

    Args:
        encoder: maps `[B, H, W, 3]` to `[B, C]`; called with `train=True` and its `batch_stats` mutable.
        optimizer: from `optim.py`, without learning rate.
        learning_rate: the rate as a function of `state.step`.
        momentum: m of the momentum encoder.
        temperature: tau of InfoNCE.
        symmetric: also match the second view's query with the first view's key; the losses add, and both
            sets of keys are enqueued (the authors' CIFAR-10 demo).
        bn_groups: G, groups of samples that share BatchNorm statistics.
        shuffle_groups: S, see `exchange`.
        mean: per channel, of images scaled to 0..1.
        std: per channel, as `mean`.
        dtype: the encoder's compute dtype.
        mesh: the device mesh, or None on one device.
        views: makes query and key view, uint8 `[B, H, W, 3]` each, of a batch.

    Returns:
        A function of state and batch. Its metrics are scalars: `loss`, `top1`, `top5`, `positive`,
        `negative`, `spread`, `grad_norm`, `lr`, `finite`.
    """

    def encode(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        images = to_network_input(images, mean, std, dtype)
        features, updated = encoder.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return contrastive.normalize(features), updated.get("batch_stats", {})

    def encode_keys(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        keys, stats = encode(params, stats, exchange(images, bn_groups, shuffle_groups, mesh))
        return exchange(keys, bn_groups, shuffle_groups, mesh), stats

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        first, second = views(batch)
        pairs = [(first, second)] + ([(second, first)] if symmetric else [])
        key_stats, keys = state.key_batch_stats, []
        for _, key_images in pairs:
            key, key_stats = encode_keys(state.key_params, key_stats, key_images)
            keys.append(jax.lax.stop_gradient(key))

        def loss_fn(params: Any):
            stats, terms = state.batch_stats, []
            for (query_images, _), key in zip(pairs, keys, strict=True):
                query, stats = encode(params, stats, query_images)
                loss, metrics = contrastive.info_nce(
                    query, key, state.dictionary.keys, temperature, mesh
                )
                terms.append((loss, {**metrics, "spread": contrastive.spread(query)}))
            total = sum(loss for loss, _ in terms)
            mean_metrics = jax.tree.map(lambda *x: sum(x) / len(x), *[m for _, m in terms])
            return total, (stats, mean_metrics)

        (loss, (stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        rate = learning_rate(state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, state.params, updates)
        key_params = optim.moving_average(state.key_params, params, momentum)

        dictionary = state.dictionary
        for key in reversed(keys):
            dictionary = dictionary.enqueue(key, batch.index, accept=finite)

        def if_finite(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        new_state = TrainState(
            step=state.step + 1,
            examples_seen=add_examples(state.examples_seen, batch.index.shape[0]),
            skipped_steps=state.skipped_steps + (~finite).astype(jnp.int32),
            params=if_finite(params, state.params),
            batch_stats=if_finite(stats, state.batch_stats),
            key_params=if_finite(key_params, state.key_params),
            key_batch_stats=if_finite(key_stats, state.key_batch_stats),
            opt_state=if_finite(opt_state, state.opt_state),
            dictionary=dictionary,
        )
        return new_state, {
            "loss": loss,
            **metrics,
            "grad_norm": grad_norm,
            "lr": rate,
            "finite": finite,
        }

    return train_step
