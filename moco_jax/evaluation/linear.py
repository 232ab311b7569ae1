"""Trains a linear classifier on a frozen encoder's features by the papers' protocols.

Crops are new in every epoch, and there is one learning rate.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.base import random_keys
from moco_jax.data.views import recipes
from moco_jax.evaluation import resume
from moco_jax.evaluation.ahead import Ahead
from moco_jax.evaluation.batches import epoch_batches
from moco_jax.evaluation.decide import decide
from moco_jax.evaluation.images import EvaluationData, Report
from moco_jax.method import optimizers
from moco_jax.parallel import mesh as mesh_lib

MOMENTUM = 0.9


class Classifier(NamedTuple):
    """Weights of a linear classifier, or gradients or buffers of them.

    Attributes:
        kernel: float32 `[D, classes]`.
        bias: float32 `[classes]`.
    """

    kernel: Any
    bias: Any


def initial(seed: int, width: int, classes: int) -> Classifier:
    """Draw weights N(0, 0.01) with biases 0, as the authors' script does."""
    kernel = 0.01 * jax.random.normal(random_keys.of_seed(seed), (width, classes), jnp.float32)
    return Classifier(kernel, jnp.zeros(classes, jnp.float32))


def logits(classifier: Classifier, features: jax.Array) -> jax.Array:
    """Compute logits: `[B, D]` -> `[B, classes]`."""
    return jnp.matmul(features, classifier.kernel, precision="highest") + classifier.bias


def losses(classifier: Classifier, features: jax.Array, classes: jax.Array) -> jax.Array:
    """Compute the cross-entropy `[B]` of each row of `features` `[B, D]` of classes int `[B]`."""
    # optax's cross-entropy of integer labels differs from this in the last bits.
    log = jax.nn.log_softmax(logits(classifier, features))
    return -jnp.take_along_axis(log, classes[:, None], 1)[:, 0]


def sgd_step(
    classifier: Classifier,
    buffer: Classifier,
    features: jax.Array,
    classes: jax.Array,
    present: jax.Array,
    rate: jax.Array,
    decay: jax.Array | float = 0.0,
) -> tuple[Classifier, Classifier, jax.Array]:
    """Apply one step of SGD as PyTorch writes it: `b = 0.9 b + g + decay w`, `w -= rate b`.

    Args:
        classifier, buffer: before the step; the buffer starts at 0.
        features: `[B, D]`.
        classes: int `[B]`.
        present: bool `[B]`; rows that are not present do not count.
        rate, decay: scalars.

    Returns:
        Classifier, buffer, and the mean cross-entropy before the step.
    """
    share = present / jnp.maximum(present.sum(), 1)

    def loss_of(classifier: Classifier) -> jax.Array:
        return jnp.sum(jnp.where(present, losses(classifier, features, classes), 0) * share)

    loss, gradient = jax.value_and_grad(loss_of)(classifier)
    buffer = jax.tree.map(
        lambda b, g, w: MOMENTUM * b + g + decay * w, buffer, gradient, classifier
    )
    return jax.tree.map(lambda w, b: w - rate * b, classifier, buffer), buffer, loss


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How long and how fast a classifier is trained on crops.

    Attributes:
        epochs, batch_size: of its training.
        rate: the learning rate at the start, for this batch.
        schedule: 'steps' (a tenth at 60 % and at 80 % of the epochs) or 'cosine', constant
            within an epoch.
    """

    epochs: int
    batch_size: int
    rate: float
    schedule: str

    def rate_at(self, steps_per_epoch: int) -> Callable[[jax.Array], jax.Array]:
        """Return the schedule: the learning rate of a step."""
        drops = (round(0.6 * self.epochs), round(0.8 * self.epochs))
        return optimizers.learning_rate(
            self.rate,
            schedule=self.schedule,
            epochs=self.epochs,
            steps_per_epoch=steps_per_epoch,
            drops=drops,
        )


def protocol(name: str, arch: str, epochs: int = 0, batch_size: int = 0) -> Protocol:
    """Return the protocol 'paper' (MoCo v1 and v2) or 'v3'.

    `epochs` and `batch_size` of 0 are the protocol's own. v1's rate of 30 stays at another batch
    size; v3's follows it.
    """
    if name == "paper":
        return Protocol(epochs or 100, batch_size or 256, 30.0, "steps")
    base, batch_size = 3.0 if arch.startswith("vit_") else 0.1, batch_size or 1024
    return Protocol(epochs or 90, batch_size, base * batch_size / 256, "cosine")


def blocks(number: int, size: int):
    """Return slices of `size` that cover `number` rows; the last may be shorter."""
    return (slice(start, min(start + size, number)) for start in range(0, number, size))


def train_on_crops(
    data: EvaluationData,
    encode: Callable[[Any], Any],
    chosen: Protocol,
    recipe: recipes.Recipe,
    report: Report,
    kept: resume.Kept = resume.NOT_KEPT,
) -> tuple[float, list[float]]:
    """Train a classifier on crops drawn anew in every epoch, and test it on centre crops.

    The encoder is in evaluation mode. Every image is seen in every epoch: the last batch may be
    smaller, as in the authors' script.

    Args:
        data: the images.
        encode: from uint8 images `[B, S, S, C]` to features `[B, D]`.
        chosen: the schedule.
        recipe: of the crops.
        report: called with a line on how far the training is.
        kept: where the training goes on, and is saved; it must know which `encode` it is.

    Returns:
        Share of test images classified rightly at the end, and after each epoch.
    """
    config, mesh, train = data.config, data.mesh, data.train
    steps = -(-len(train.indices) // chosen.batch_size)
    test, truth = data.extract(data.test, encode, report)
    classifier = initial(config.seed, test.shape[1], data.classes)
    state = jax.device_get((classifier, jax.tree.map(jnp.zeros_like, classifier)))
    state = mesh_lib.to_every_device(mesh, state)
    facts = chosen, recipe, config.seed, data.recipe, train.facts, data.test.facts
    (classifier, buffer), begun, notes = kept.begin(mesh, state, facts)
    rates = optimizers.values(chosen.rate_at(steps), chosen.epochs * steps)
    step = jax.jit(sgd_step, donate_argnums=(0, 1), out_shardings=mesh_lib.replicated(mesh))

    how = dict(epochs=chosen.epochs, batch_size=chosen.batch_size, seed=config.seed)
    batches = epoch_batches(train, recipe, mesh, workers=config.workers, start=begun, **how)
    scores: list[float] = notes.get("scores", [])
    ahead = Ahead()
    for n, (epoch, arrays) in enumerate(batches, begun):
        classes, present = arrays["classes"], arrays["present"]
        features = encode(arrays["image"])
        classifier, buffer, loss = step(classifier, buffer, features, classes, present, rates[n])
        ahead.wait(loss)
        progress = f"epoch {epoch + 1}/{chosen.epochs}  step {n % steps + 1}/{steps}"
        if (n + 1) % steps == 0:
            scores.append(float(np.mean(predict(classifier, test) == truth)))
            progress += f"  loss {float(loss):.3f}  test {100 * scores[-1]:.2f} %"
        if kept.due(last=n + 1 == chosen.epochs * steps):
            kept.save(n + 1, (classifier, buffer), scores=scores)
        report(progress)
    return scores[-1], scores


def predict(classifier: Classifier, features: np.ndarray, block: int = 4096) -> np.ndarray:
    """Predict the class int `[N]` of each row of `features` `[N, D]`, as `decide` names it."""
    kernel, bias = (np.asarray(x) for x in classifier)
    parts = [decide(features[some] @ kernel + bias) for some in blocks(len(features), block)]
    return np.concatenate(parts)


def crop_recipe(name: str, data: EvaluationData) -> recipes.Recipe:
    """Create the recipe `name` for training crops, of the size of the run's views."""
    return recipes.create(name, data.config.image_size, channels=data.config.channels)
