"""One step of fine-tuning: encoder and classifier, their optimizer and learning rates.

`make_step` is a pure step. BatchNorm is in training mode, one group for the whole batch.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moco_jax import encoders
from moco_jax.encoders.configured import encoder_options
from moco_jax.evaluation import linear, mixing
from moco_jax.evaluation.finetune_recipe import Training
from moco_jax.method import optimizers
from moco_jax.method.encoding import to_network_input
from moco_jax.parallel import mesh as mesh_lib


@flax.struct.dataclass
class State:
    """The arrays that a fine-tuning step changes.

    Attributes:
        params: `{'backbone', 'classifier'}`, the latter a `linear.Classifier`.
        batch_stats: the backbone's; empty without BatchNorm.
        opt_state: the optimizer's.
    """

    params: Any
    batch_stats: Any
    opt_state: Any


def make_optimizer(how: Training) -> optax.GradientTransformation:
    """Return the optimizer of the recipe `how`, without learning rates."""
    if how.optimizer == "sgd":
        return optimizers.sgd(0.9, how.weight_decay)

    def decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, p: p.ndim > 1 and "cls_token" not in jax.tree_util.keystr(path), params
        )

    return optax.chain(
        optax.scale_by_adam(0.9, 0.999, 1e-8),
        optax.add_decayed_weights(how.weight_decay, decayed),
    )


def layer(path: tuple[str, ...], depth: int) -> int:
    """Return the layer of a ViT with `depth` blocks that a parameter belongs to.

    0: patches and class token; then blocks; then the rest.
    """
    part, name = path[0], path[1] if len(path) > 1 else ""
    if part == "backbone" and name in ("patch_embed", "cls_token"):
        return 0
    if part == "backbone" and name.startswith("blocks_"):
        return int(name.removeprefix("blocks_")) + 1
    return depth + 1


def learning_rates(
    params: Any, encoder: encoders.Encoder, how: Training, scratch: bool = False
) -> Any:
    """Return the learning rate of each of `params` at the schedule's peak, a tree of floats.

    It is the classifier's or the backbone's, or that of training from scratch. In a ViT of L
    blocks, layer l has it times `layer_decay ** (L + 1 - l)` (BEiT, MAE). What is frozen in
    pretraining has 0.
    """
    depth = getattr(encoder.backbone, "depth", 0)
    frozen = encoders.frozen(encoder, params)

    def rate(path: Any, is_frozen: bool) -> float:
        names = tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        own = how.backbone_rate if names[0] == "backbone" else how.classifier_rate
        own = how.scratch_rate if scratch else own
        factor = 1.0 if scratch else how.layer_decay ** (depth + 1 - layer(names, depth))
        return 0.0 if is_frozen else own * factor

    return jax.tree_util.tree_map_with_path(rate, frozen)


def initial_state(
    variables: Any, optimizer: optax.GradientTransformation, seed: int, width: int, classes: int
) -> State:
    """Return the state before the first step: pretrained backbone, fresh classifier.

    The backbone is that of `variables`, and `linear.initial` draws the classifier. The function
    is pure, so that jit can place its arrays.
    """
    backbone, stats = (
        jax.tree.map(jnp.copy, variables[kind].get("backbone", {}))
        for kind in ("params", "batch_stats")
    )
    params = {"backbone": backbone, "classifier": linear.initial(seed, width, classes)}
    return State(params, {"backbone": stats} if stats else {}, optimizer.init(params))


Step = Callable[..., tuple[State, jax.Array]]


def make_step(
    encoder: encoders.Encoder,
    how: Training,
    classes: int,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
) -> Step:
    """Make the pure step `step(state, batch, rates, factor, own, rng) -> (state, loss)`.

    Of the step's arguments, `batch` is `image` uint8 `[B, H, W, C]`, `classes` int `[B]` and
    `present` bool `[B]`: rows that are not present count for BatchNorm alone. `rates` is what
    `learning_rates` gives, `factor` the place on the schedule, 0 to 1, `own` what `mixing.draw`
    gives, None for no mixing, and `rng` a key for dropped paths. The loss is the mean
    cross-entropy of the rows that count, before the step.
    """
    optimizer = make_optimizer(how)
    exact = jnp.promote_types(dtype, jnp.float32)

    def step(
        state: State, batch: dict[str, jax.Array], rates: Any, factor: Any, own: Any, rng: Any
    ):
        images, present = batch["image"].astype(exact), batch["present"]
        targets = jax.nn.one_hot(batch["classes"], classes, dtype=exact)
        targets = (1 - how.smoothing) * targets + how.smoothing / classes
        if own is not None:
            images, targets = (mesh_lib.divide(x, mesh) for x in mixing.apply(images, targets, own))
        inputs = to_network_input(images, mean, std, dtype)

        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            features, updated = encoder.apply(
                {"params": {"backbone": params["backbone"]}, "batch_stats": state.batch_stats},
                inputs,
                train=True,
                method=encoder.features,
                mutable=["batch_stats"],
                rngs={"drop_path": rng},
            )
            logits = linear.logits(params["classifier"], features)
            losses = optax.softmax_cross_entropy(logits, targets)
            total = jnp.sum(jnp.where(present, losses, 0)) / jnp.maximum(present.sum(), 1)
            return total, updated.get("batch_stats", {})

        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(
            lambda p, u, rate: p - jnp.asarray(rate * factor, p.dtype) * u,
            state.params,
            updates,
            rates,
        )
        return State(params, stats, opt_state), loss

    return step


def encoder_of(config: ConfigDict, dtype: Any, drop_path: float) -> encoders.Encoder:
    """Create the encoder of a run for fine-tuning, with one BatchNorm group."""
    made = encoders.create(**encoder_options(config) | {"bn_groups": 1}, dtype=dtype)
    if hasattr(made.backbone, "drop_path"):
        made = made.clone(backbone=made.backbone.clone(drop_path=drop_path))
    return made


@functools.cache
def jitted_step(encoder, how, classes, mean, std, dtype, mesh) -> Any:
    """Compile the step for the devices of `mesh`, once for each kind; the state is donated."""
    step = make_step(encoder, how, classes, mean=mean, std=std, dtype=dtype, mesh=mesh)
    everywhere, divided = mesh_lib.replicated(mesh), mesh_lib.sharded(mesh)
    layouts = (everywhere, divided, *[everywhere] * 4)
    return jax.jit(step, in_shardings=layouts, out_shardings=everywhere, donate_argnums=0)
