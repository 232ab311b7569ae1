"""Fine-tuning: trains an encoder with a linear classifier on top, and tests it on the way."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax import encoders
from moco_jax.base import random_keys
from moco_jax.data.views import recipes
from moco_jax.encoders.configured import compute_dtype
from moco_jax.evaluation import linear, mixing, resume
from moco_jax.evaluation.ahead import Ahead
from moco_jax.evaluation.batches import epoch_batches
from moco_jax.evaluation.finetune_recipe import Training, schedule, shape
from moco_jax.evaluation.finetune_step import (
    State,
    Step,
    encoder_of,
    initial_state,
    jitted_step,
    learning_rates,
    make_optimizer,
)
from moco_jax.evaluation.images import EvaluationData, Report
from moco_jax.evaluation.labelled import Labelled
from moco_jax.inference import trained_encoder
from moco_jax.parallel import mesh as mesh_lib


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


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Options of one training, beside its recipe.

    Attributes:
        scratch: whether rates are those of training from scratch.
        exact_epochs: as in `finetune_recipe.shape`.
        tests: how often the test images are classified at most, the last time after the last
            epoch.
    """

    scratch: bool = False
    exact_epochs: bool = False
    tests: int = 20


def train(
    data: EvaluationData,
    start: trained_encoder.TrainedEncoder,
    images: Labelled,
    how: Training,
    recipe: recipes.Recipe,
    report: Report,
    options: TrainOptions | None = None,
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
        options: what differs from usual fine-tuning.
        kept: where the training goes on, and is saved.
    """
    options = options or TrainOptions()
    config, mesh = data.config, data.mesh
    batch, steps, epochs = shape(how, len(images.indices), mesh.size, options.exact_epochs)
    tested = _tested_epochs(epochs, options.tests)
    encoder, step, state = _prepare(data, start, how)
    rates = learning_rates(state.params, encoder, how, options.scratch)
    factors = schedule(how, epochs, steps)
    # A saved training is gone on with only where all of these are the same.
    facts: tuple[Any, ...] = (start.variables, encoder, how, (batch, steps, epochs), recipe)
    facts += (options.scratch, tested, tuple(config.mean), tuple(config.std), config.seed)
    facts += (data.classes, data.recipe, images.facts, data.test.facts)
    state, begun, notes = kept.begin(mesh, state, facts)
    batches = _batches(data, images, recipe, batch, epochs, begun)
    key = random_keys.of_seed(config.seed)
    accuracies: list[float] = notes.get("accuracies", [])
    loss, ahead = notes.get("loss", math.nan), Ahead()
    for n, (epoch, arrays) in enumerate(batches, begun):
        own = _mixing(how, config.seed, n, config.image_size)
        state, loss = step(state, arrays, rates, factors[n], own, jax.random.fold_in(key, n))
        ahead.wait(loss)
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


def _tested_epochs(epochs: int, tests: int) -> list[int]:
    """Return the epochs after which test images are classified: evenly spread, up to the last."""
    return sorted({round(epochs * (n + 1) / tests) for n in range(tests)} - {0})


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
