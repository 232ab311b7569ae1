"""Fine-tuning: trains an encoder with a linear classifier on top, by SGD or DeiT's recipe.

`make_step` is a pure step, `train` goes through the epochs. BatchNorm is in training mode, one
group for the whole batch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moco_jax import encoders
from moco_jax.base import random_keys
from moco_jax.data.views import recipes
from moco_jax.encoders.configured import compute_dtype, encoder_options
from moco_jax.evaluation import linear, mixing, resume
from moco_jax.evaluation.batches import epoch_batches
from moco_jax.evaluation.images import EvaluationData, Report
from moco_jax.evaluation.labelled import Labelled
from moco_jax.inference import trained_encoder
from moco_jax.method import optimizers
from moco_jax.method.encoding import to_network_input
from moco_jax.parallel import mesh as mesh_lib

MIN_STEPS = 1000  # 20 epochs of 1 % of ImageNet, in batches of 256


@dataclasses.dataclass(frozen=True)
class Training:
    """A fine-tuning recipe.

    Learning rates are those of the batch that the recipe is for; they fall along a cosine, at
    every step.

    Attributes:
        optimizer: 'sgd' (momentum 0.9) or 'adamw' (no decay on class token and parameters of
            rank 0 and 1).
        epochs, batch_size: length, and images at a step.
        backbone_rate, classifier_rate: at the start, or after the warm-up.
        scratch_rate: of both where training starts from random weights.
        weight_decay: as the optimizer has it.
        warmup: share of the epochs in which the rates rise from 0.
        smoothing: share of each target that all classes divide among them.
        mixup, cutmix: as in `mixing.draw`.
        drop_path: of a ViT's last block.
        layer_decay: of a ViT: the rate of each layer, as a multiple of that of the layer above
            it.
    """

    optimizer: str
    epochs: int
    batch_size: int
    backbone_rate: float
    classifier_rate: float
    scratch_rate: float
    weight_decay: float = 0.0
    warmup: float = 0.0
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0
    layer_decay: float = 1.0


RECIPES = ("sgd", "deit")


def training(recipe: str, epochs: int = 0, batch_size: int = 0, **changes: Any) -> Training:
    """Return one of `RECIPES` with changes; zeros and None keep the recipe's own values.

    'sgd': as ResNets are fine-tuned on 1 and 10 % of ImageNet (arXiv 2006.09882): no decay, a
    classifier's rate twenty times the backbone's. 'deit' (arXiv 2012.12877), by which MoCo v3
    fine-tunes its ViT-B: rates follow the batch.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if recipe == "sgd":
        own = Training("sgd", epochs or 20, batch_size or 256, 0.01, 0.2, 0.1)
    else:
        batch_size = batch_size or 1024
        rate = 5e-4 * batch_size / 512
        own = Training(
            "adamw",
            epochs or 150,
            batch_size,
            rate,
            rate,
            rate,
            weight_decay=0.05,
            warmup=1 / 30,
            smoothing=0.1,
            mixup=0.8,
            cutmix=1.0,
            drop_path=0.1,
        )
    return dataclasses.replace(own, **given)


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
            log = jax.nn.log_softmax(linear.logits(params["classifier"], features))
            losses = -jnp.sum(targets * log, axis=-1)
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


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The result of a fine-tuning.

    Attributes:
        trained: the encoder with its new weights.
        classifier: NumPy arrays.
        epochs: how many were trained.
        tested: after how many epochs the test images were classified; the last is after all.
        accuracies: the share classified rightly then.
        loss: of the last step.
    """

    trained: trained_encoder.TrainedEncoder
    classifier: linear.Classifier
    epochs: int
    tested: list[int]
    accuracies: list[float]
    loss: float


def shape(how: Training, number: int, devices: int, exact_epochs: bool) -> tuple[int, int, int]:
    """Return images at a step, steps in an epoch and epochs, for `number` images.

    A batch is no larger than all images, but for what makes it divide over `devices`. With
    `exact_epochs` epochs are the recipe's; without, there are more where these have fewer than
    `MIN_STEPS` steps.
    """
    batch = min(how.batch_size, -(-number // devices) * devices)
    steps = -(-number // batch)
    epochs = how.epochs if exact_epochs else max(how.epochs, -(-MIN_STEPS // steps))
    return batch, steps, epochs


def train(
    data: EvaluationData,
    start: trained_encoder.TrainedEncoder,
    images: Labelled,
    how: Training,
    recipe: recipes.Recipe,
    report: Report,
    *,
    scratch: bool = False,
    exact_epochs: bool = False,
    tests: int = 20,
    kept: resume.Kept = resume.NOT_KEPT,
) -> Tuned:
    """Fine-tune on crops of `images`, drawn anew in every epoch, and test on centre crops.

    Tests are in evaluation mode and float32.

    Args:
        data: the test images, and the devices.
        start: the encoder before training.
        images: the training images.
        how: the recipe.
        recipe: of the crops.
        report: called with a line on how far the training is.
        scratch: whether rates are those of training from scratch.
        exact_epochs: as in `shape`.
        tests: how often the test images are classified at most, the last time after the last
            epoch.
        kept: where the training goes on, and is saved.
    """
    config, mesh = data.config, data.mesh
    batch, steps, epochs = shape(how, len(images.indices), mesh.size, exact_epochs)
    tested = sorted({round(epochs * (n + 1) / tests) for n in range(tests)} - {0})
    encoder, step, state = _prepare(data, start, how)
    rates = learning_rates(state.params, encoder, how, scratch)
    factors = _schedule(how, epochs, steps)
    # A saved training is gone on with only where all of these are the same.
    facts: tuple[Any, ...] = (start.variables, encoder, how, (batch, steps, epochs), recipe)
    facts += (scratch, tested, tuple(config.mean), tuple(config.std), config.seed)
    facts += (data.classes, data.recipe, images.facts, data.test.facts)
    state, begun, notes = kept.begin(mesh, state, facts)
    batches = _batches(data, images, recipe, batch, epochs, begun)
    key = random_keys.of_seed(config.seed)
    accuracies: list[float] = notes.get("accuracies", [])
    loss = notes.get("loss", math.nan)
    for n, (epoch, arrays) in enumerate(batches, begun):
        own = _mixing(how, config.seed, n, config.image_size)
        state, loss = step(state, arrays, rates, factors[n], own, jax.random.fold_in(key, n))
        progress = f"{images.about}: epoch {epoch + 1}/{epochs}  step {n % steps + 1}/{steps}"
        if (n + 1) % steps == 0 and epoch + 1 in tested:
            trained, classifier = _taken(start, state)
            accuracies.append(_test(data, trained, classifier, progress, report))
            progress += f"  loss {float(loss):.3f}  test {100 * accuracies[-1]:.2f} %"
        if kept.due(last=n + 1 == epochs * steps):
            kept.save(n + 1, state, accuracies=accuracies, loss=float(loss))
        report(progress)
    trained, classifier = _taken(start, state)
    return Tuned(trained, classifier, epochs, tested, accuracies, float(loss))


def _prepare(
    data: EvaluationData, start: trained_encoder.TrainedEncoder, how: Training
) -> tuple[encoders.Encoder, Step, State]:
    """Create encoder, compiled step and first state of a fine-tuning that begins at `start`."""
    config, mesh = data.config, data.mesh
    dtype = np.dtype("float32")
    if config.compute_dtype != "float64":
        dtype = compute_dtype(config.compute_dtype)
    encoder = encoder_of(config, dtype, how.drop_path)
    step = jitted_step(
        encoder,
        dataclasses.replace(how, epochs=0, batch_size=0),
        data.classes,
        tuple(config.mean),
        tuple(config.std),
        dtype,
        mesh,
    )
    width = jax.eval_shape(
        lambda x: encoder.apply(start.variables, x, method=encoder.features),
        jnp.zeros((1, config.image_size, config.image_size, config.channels)),
    ).shape[-1]
    begin = functools.partial(
        initial_state,
        optimizer=make_optimizer(how),
        seed=config.seed,
        width=width,
        classes=data.classes,
    )
    state = jax.jit(begin, out_shardings=mesh_lib.replicated(mesh))(start.variables)
    return encoder, step, state


def _batches(
    data: EvaluationData,
    images: Labelled,
    recipe: recipes.Recipe,
    batch: int,
    epochs: int,
    start: int,
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """Yield the batches of crops of `images` behind the first `start` ones."""
    config = data.config
    return epoch_batches(
        images,
        recipe,
        data.mesh,
        epochs=epochs,
        batch_size=batch,
        seed=config.seed,
        workers=config.workers,
        start=start,
    )


def _schedule(how: Training, epochs: int, steps: int) -> np.ndarray:
    """Return the factor on the learning rates at each step, float32."""
    rate_at = optimizers.learning_rate(
        1.0, "cosine_per_step", epochs, steps, warmup_epochs=how.warmup * epochs
    )
    return optimizers.values(rate_at, epochs * steps).astype(np.float32)


def _mixing(how: Training, seed: int, step: int, side: int) -> np.ndarray | None:
    """Draw how images of this step are mixed, as `mixing.draw` does; None for no mixing."""
    if not (how.mixup or how.cutmix):
        return None
    rng = np.random.default_rng((seed, step))
    return mixing.draw(rng, side, side, how.mixup, how.cutmix)


def _taken(
    start: trained_encoder.TrainedEncoder, state: State
) -> tuple[trained_encoder.TrainedEncoder, linear.Classifier]:
    """Copy the encoder and the classifier of `state` to NumPy arrays."""
    params, stats = jax.device_get((state.params, state.batch_stats))
    variables = {"params": {"backbone": params["backbone"]}, "batch_stats": stats}
    return dataclasses.replace(start, variables=variables), params["classifier"]


def _test(
    data: EvaluationData,
    trained: trained_encoder.TrainedEncoder,
    classifier: linear.Classifier,
    progress: str,
    report: Report,
) -> float:
    """Return the share of test images that the classifier gets right on the encoder's features."""
    features, truth = data.extract(
        data.test,
        data.encoder(trained, "backbone"),
        lambda text: report(f"{progress}  {text}"),
    )
    return float(np.mean(linear.predict(classifier, features) == truth))
