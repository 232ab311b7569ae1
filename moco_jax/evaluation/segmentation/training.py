"""Fine-tuning an FCN: the protocol, the pure step, and the loop over views."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from moco_jax.base import random_keys
from moco_jax.base.errors import UserError
from moco_jax.data import order
from moco_jax.evaluation import resume
from moco_jax.evaluation.segmentation import fcn
from moco_jax.evaluation.segmentation.data import IGNORED, Scenes
from moco_jax.evaluation.segmentation.views import InputSettings, ahead, training_view
from moco_jax.method import optimizers
from moco_jax.method.encoding import to_network_input
from moco_jax.parallel import mesh as mesh_lib

MOMENTUM, DECAY = 0.9, 1e-4
DROPS = (0.7, 0.9)  # shares of the training after which the rate is divided by ten


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The length and learning rate of an FCN's fine-tuning.

    Attributes:
        iterations: steps.
        rate: learning rate at the start.
        crop: side of the views.
        batch_size: over all devices.
    """

    iterations: int
    rate: float
    crop: int
    batch_size: int = 16

    def rate_at(self) -> Callable[[jax.Array], jax.Array]:
        """Return the schedule: the learning rate of a step."""
        drops = [round(share * self.iterations) for share in DROPS]
        return optimizers.learning_rate(
            self.rate, schedule="steps", epochs=self.iterations, steps_per_epoch=1, drops=drops
        )


# MoCo v1, appendix A.5
VOC, CITYSCAPES = Protocol(30_000, 0.003, 513), Protocol(90_000, 0.01, 769)


@flax.struct.dataclass
class State:
    """The arrays that a step changes.

    Attributes:
        variables: `{'params', 'batch_stats'}` of the FCN.
        buffer: of SGD.
    """

    variables: Any
    buffer: Any


def optimizer() -> optax.GradientTransformation:
    """Return SGD with momentum 0.9, and decay on every parameter, as in the pretraining."""
    return optimizers.sgd(MOMENTUM, DECAY)


def start(network: fcn.FCN, backbone: Any, channels: int, seed: int) -> State:
    """Return the state before training: pretrained `backbone`, and a head drawn from `seed`.

    `backbone` is `{'params', 'batch_stats'}`.
    """
    images = jnp.zeros((1, 64, 64, channels))
    places = jax.eval_shape(
        lambda weights: network.backbone.apply(weights, images, method="feature_map"), backbone
    )
    drawn = jax.jit(network.head.init)(
        random_keys.of_seed(seed), jnp.zeros(places.shape, places.dtype)
    )
    variables = {kind: {"backbone": backbone[kind], "head": drawn[kind]} for kind in drawn}
    return State(variables, optimizer().init(variables["params"]))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy over the pixels that count; 0 if none count.

    Logits are `[B, H, W, K]`, labels int `[B, H, W]`, `IGNORED` or below K.
    """
    counts = labels != IGNORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counts, labels, 0))
    return jnp.sum(jnp.where(counts, losses, 0)) / jnp.maximum(jnp.sum(counts), 1)


def make_step(
    network: fcn.FCN, mean: Sequence[float], std: Sequence[float]
) -> Callable[[State, jax.Array, jax.Array, jax.Array], tuple[State, jax.Array]]:
    """Make the pure step `(state, images, labels, rate) -> (state, loss)`.

    Images are uint8 `[B, S, S, C]`, labels uint8 `[B, S, S]`; all of the network is trained, and
    BatchNorm's statistics are those of the whole batch, however it is divided over devices.
    """

    def step(state: State, images: jax.Array, labels: jax.Array, rate: jax.Array):
        inputs = to_network_input(images, mean, std, network.backbone.dtype)

        def loss_of(params: Any):
            logits, updated = network.apply(
                state.variables | {"params": params}, inputs, train=True, mutable=["batch_stats"]
            )
            whole = fcn.resize(logits, labels.shape[1:])
            return cross_entropy(whole, labels.astype(jnp.int32)), updated["batch_stats"]

        params = state.variables["params"]
        (loss, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        update, buffer = optimizer().update(gradient, state.buffer, params)
        params = jax.tree.map(lambda w, u: w - rate * u, params, update)
        return State({"params": params, "batch_stats": stats}, buffer), loss

    return step


@functools.cache
def _compiled_step(
    network: fcn.FCN, mean: tuple[float, ...], std: tuple[float, ...], mesh: Mesh
) -> Callable:
    """Compile the step once for all encoders that are compared; the state is donated."""
    everywhere, divided = mesh_lib.replicated(mesh), mesh_lib.sharded(mesh)
    return jax.jit(
        make_step(network, mean, std),
        donate_argnums=0,
        in_shardings=(everywhere, divided, divided, everywhere),
        out_shardings=everywhere,
    )


def views(
    scenes: Scenes,
    chosen: Protocol,
    rows: np.ndarray,
    fill: Sequence[int],
    seed: int,
    workers: int,
    start: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the views of each step: `image` uint8 `[n, S, S, C]` and `label` uint8 `[n, S, S]`.

    Every image is drawn once in an epoch.

    Args:
        scenes: the images.
        chosen: how many views, and how large.
        rows: int `[n]`, the places in the batch that this host makes.
        fill: colour beyond an image.
        seed: of order and views, which do not depend on `workers`.
        workers: threads; 0 for as many as cores.
        start: how many steps to leave out at the beginning; their views are not made.
    """
    number = len(scenes.pairs)

    def places() -> Iterator[tuple[int, int, int]]:
        for step in range(start, chosen.iterations):
            for place in (step * chosen.batch_size + rows).tolist():
                epoch, position = divmod(place, number)
                index = int(order.permute(np.asarray([position]), number, seed, epoch)[0])
                yield place, epoch, index

    def make(place: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((seed, *place))
        index = place[-1]
        return training_view(scenes.image(index), scenes.label(index), chosen.crop, fill, rng)

    threads = workers or os.cpu_count() or 1
    made = ahead(make, places(), threads, 2 * len(rows) + threads)
    for _ in range(start, chosen.iterations):
        images, labels = zip(*(next(made) for _ in rows), strict=True)
        yield {"image": np.stack(images), "label": np.stack(labels)}


def fine_tune(
    network: fcn.FCN,
    state: State,
    scenes: Scenes,
    chosen: Protocol,
    mesh: Mesh,
    inputs: InputSettings,
    report: Callable[[str], None],
    kept: resume.Kept = resume.NOT_KEPT,
) -> tuple[Any, list[float]]:
    """Train the network, and return its variables and the loss of each tenth of the training.

    Args:
        network, state: before the training.
        scenes: the images.
        chosen: how long and how fast.
        mesh: the devices; the batch is divided over them.
        inputs: how images are read and normalised.
        report: called with a line on how far it is.
        kept: where the training goes on, and is saved; it must know the weights that it begins
            with.
    """
    step = _compiled_step(network, inputs.mean, inputs.std, mesh)
    state = mesh_lib.to_every_device(mesh, jax.device_get(state))
    facts = network, chosen, inputs.mean, inputs.std, inputs.seed, scenes.facts
    state, begun, notes = kept.begin(mesh, state, facts)
    rates = optimizers.values(chosen.rate_at(), chosen.iterations)
    rows = mesh_lib.local_rows(mesh, chosen.batch_size)
    fill = [round(255 * value) for value in inputs.mean]
    made = views(scenes, chosen, rows, fill, inputs.seed, inputs.workers, begun)
    losses: list[float] = notes.get("losses", [])
    running: list[jax.Array] = []
    for n, batch in enumerate(made, begun):
        arrays = mesh_lib.to_devices(mesh, batch)
        state, loss = step(state, arrays["image"], arrays["label"], rates[n])
        running.append(loss)
        last = n + 1 == chosen.iterations
        due = kept.due(last)
        # The loss is read one step late, so that the devices need not wait for the host.
        while len(running) > (0 if due or last else 1):
            losses.append(_finite(running.pop(0), len(losses) + 1, chosen))
        if due:
            kept.save(n + 1, state, losses=losses)
        if losses:
            report(
                f"step {len(losses):,}/{chosen.iterations:,}  loss {losses[-1]:.3f}  rate"
                f" {rates[n]:g}"
            )
    tenths = np.array_split(losses, min(10, len(losses)))
    return state.variables, [float(np.mean(tenth)) for tenth in tenths]


def _finite(loss: jax.Array, step: int, chosen: Protocol) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise UserError(
            f"the loss of step {step} is {value}: --rate={chosen.rate:g} is too high for this"
            " encoder; a tenth may work"
        )
    return value
