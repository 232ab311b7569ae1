"""A linear classifier on the features of a frozen encoder.

`train_on_crops` is the papers' protocol: new crops in every epoch, one learning rate. `search` computes features once
and trains classifiers of many rates and decays on them at the same time.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moco_jax import mesh as mesh_lib
from moco_jax import optim
from moco_jax.data import order, pipeline, recipes
from moco_jax.evaluation.subject import Report, Subject

MOMENTUM = 0.9
EPSILON = 1e-5  # BatchNorm's
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
DECAYS = (0.0, 1e-5, 1e-4, 1e-3)


class Classifier(NamedTuple):
    """Weights, or gradients or buffers of them.

    Attributes:
        kernel: float32 `[D, classes]`.
        bias: float32 `[classes]`.
    """

    kernel: Any
    bias: Any


def initial(seed: int, width: int, classes: int) -> Classifier:
    """Weights N(0, 0.01), biases 0, as the authors' script draws them."""
    kernel = 0.01 * jax.random.normal(jax.random.key(seed), (width, classes), jnp.float32)
    return Classifier(kernel, jnp.zeros(classes, jnp.float32))


def logits(classifier: Classifier, features: jax.Array) -> jax.Array:
    """`[B, D]` -> `[B, classes]`."""
    return jnp.matmul(features, classifier.kernel, precision="highest") + classifier.bias


def _losses(classifier: Classifier, features: jax.Array, classes: jax.Array) -> jax.Array:
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
    """One step of SGD as PyTorch writes it: `b = 0.9 b + g + decay w`, `w -= rate b`.

    Args:
        classifier, buffer: before the step; the buffer starts at 0.
        features: `[B, D]`.
        classes: int `[B]`.
        present: bool `[B]`; rows without it do not count.
        rate, decay: scalars.

    Returns:
        classifier, buffer, and the mean cross-entropy before the step.
    """
    share = present / jnp.maximum(present.sum(), 1)

    def loss_of(classifier: Classifier) -> jax.Array:
        return jnp.sum(jnp.where(present, _losses(classifier, features, classes), 0) * share)

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
        schedule: 'steps' (a tenth at 60 % and at 80 % of the epochs) or 'cosine', constant within an epoch.
    """

    epochs: int
    batch_size: int
    rate: float
    schedule: str

    def rate_at(self, steps_per_epoch: int) -> Callable[[jax.Array], jax.Array]:
        """The learning rate of a step."""
        drops = (round(0.6 * self.epochs), round(0.8 * self.epochs))
        return optim.learning_rate(self.rate, self.schedule, self.epochs, steps_per_epoch, drops)


def protocol(name: str, arch: str, epochs: int = 0, batch_size: int = 0) -> Protocol:
    """The protocol of 'paper' (MoCo v1 and v2) or of 'v3'; `epochs` and `batch_size` of 0 are its own.

    v1's rate of 30 stays at another batch size; v3's follows it.
    """
    if name == "paper":
        return Protocol(epochs or 100, batch_size or 256, 30.0, "steps")
    base, batch_size = 3.0 if arch.startswith("vit_") else 0.1, batch_size or 1024
    return Protocol(epochs or 90, batch_size, base * batch_size / 256, "cosine")


def _blocks(number: int, size: int):
    """Slices of `size` that cover `number` rows; the last may be shorter."""
    return (slice(start, min(start + size, number)) for start in range(0, number, size))


def _fill(x: np.ndarray, rows: int) -> np.ndarray:
    """`x` with rows of zeros behind it, so that there are `rows`."""
    return np.concatenate([x, np.zeros((rows - len(x), *x.shape[1:]), x.dtype)])


def train_on_crops(
    subject: Subject,
    encode: Callable[[Any], Any],
    chosen: Protocol,
    recipe: recipes.Recipe,
    report: Report,
) -> tuple[float, list[float]]:
    """Train on crops that are drawn anew in every epoch, the encoder in evaluation mode; test on centre crops.

    Every image is seen in every epoch: the last batch may be smaller, as in the authors' script.

    Args:
        subject: the images.
        encode: from uint8 images `[B, S, S, C]` to features `[B, D]`.
        chosen: the schedule.
        recipe: of the crops.
        report: told how far it is.

    Returns:
        share of test images classified rightly at the end, and after each epoch.
    """
    config, mesh, train = subject.config, subject.mesh, subject.train
    batch, number = chosen.batch_size, len(train.indices)
    steps, rows = -(-number // batch), mesh_lib.local_rows(mesh, batch)
    test, truth = subject.extract(subject.test, encode, report)
    classifier = initial(config.seed, test.shape[1], subject.classes)
    buffer = jax.tree.map(jnp.zeros_like, classifier)
    rate_at = chosen.rate_at(steps)
    step = jax.jit(sgd_step, donate_argnums=(0, 1), out_shardings=mesh_lib.replicated(mesh))

    def places():
        """Epoch, places in `train` and whether they count, of this host's rows of every batch."""
        for epoch in range(chosen.epochs):
            for start in range(0, number, batch):
                wanted = np.arange(start, start + batch)[rows]
                found = order.permute(wanted % number, number, config.seed, epoch)
                yield epoch, found, wanted < number

    reads = ((epoch, train.indices[found]) for epoch, found, _ in places())
    batches = pipeline.view_batches(
        train.source, recipe, reads, len(rows), config.seed, config.workers
    )
    scores: list[float] = []
    for n, (views, (epoch, found, counts)) in enumerate(zip(batches, places(), strict=True)):
        arrays = mesh_lib.to_devices(
            mesh,
            {
                "image": views["image"],
                "classes": train.classes[found],
                "present": views["ok"] & counts,
            },
        )
        classifier, buffer, loss = step(
            classifier, buffer, encode(arrays["image"]), arrays["classes"], arrays["present"], rate_at(jnp.asarray(n))
        )  # fmt: skip
        said = f"epoch {epoch + 1}/{chosen.epochs}  step {n % steps + 1}/{steps}"
        if (n + 1) % steps == 0:
            scores.append(float(np.mean(predict(classifier, test) == truth)))
            said += f"  loss {float(loss):.3f}  test {100 * scores[-1]:.2f} %"
        report(said)
    return scores[-1], scores


def predict(classifier: Classifier, features: np.ndarray, block: int = 4096) -> np.ndarray:
    """The class int `[N]` of each row of `features` `[N, D]`."""
    kernel, bias = (np.asarray(x) for x in classifier)
    parts = [(features[some] @ kernel + bias).argmax(1) for some in _blocks(len(features), block)]
    return np.concatenate(parts)


class Grid(NamedTuple):
    """Classifiers that are trained together: V normalisations times R rates times W decays.

    Attributes:
        rates: floats `[R]`.
        decays: floats `[W]`.
        norms: bools `[V]`: whether BatchNorm without affine stands before the classifier. As features do not change, its
            statistics are those of all of them.
    """

    rates: Sequence[float] = RATES
    decays: Sequence[float] = DECAYS
    norms: Sequence[bool] = (False, True)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The classifiers of a grid.

    Attributes:
        grid: which they are.
        classifiers: arrays `[V, R * W, ...]`.
        mean, scale: float32 `[V, 1, D]`: features are turned into `(x - mean) * scale`.
    """

    grid: Grid
    classifiers: Classifier
    mean: np.ndarray
    scale: np.ndarray

    def scores(
        self, features: np.ndarray, classes: np.ndarray, block: int = 1024
    ) -> tuple[np.ndarray, np.ndarray]:
        """Share of rows classified rightly, and mean cross-entropy, of every classifier: float64 `[V, R, W]` each."""
        shape = (len(self.grid.norms), len(self.grid.rates), len(self.grid.decays))
        sums, block = np.zeros((2, *shape)), min(block, len(features))
        for some in _blocks(len(features), block):
            rows = len(features[some])
            counted = _count(
                self.classifiers, self.mean, self.scale, _fill(features[some], block), _fill(classes[some], block),
                np.arange(block) < rows,
            )  # fmt: skip
            found = np.asarray(jax.device_get(counted), np.float64)
            sums += found[:, :, : shape[1] * shape[2]].reshape(sums.shape)
        right, loss = sums / len(features)
        return right, loss


@jax.jit
def _count(classifiers, mean, scale, features, classes, present):
    def one(classifier, features):
        found = logits(classifier, features).argmax(-1) == classes
        losses = _losses(classifier, features, classes)
        return jnp.sum(found & present), jnp.sum(jnp.where(present, losses, 0))

    return jax.vmap(jax.vmap(one, (0, None)))(classifiers, (features - mean) * scale)


@jax.jit(donate_argnums=(0, 1))
def _step_all(classifiers, buffers, mean, scale, features, classes, present, rates, decays):
    over_members = jax.vmap(sgd_step, (0, 0, None, None, None, 0, 0))
    over_norms = jax.vmap(over_members, (0, 0, 0, None, None, None, None))
    scaled = (features - mean) * scale
    return over_norms(classifiers, buffers, scaled, classes, present, rates, decays)[:2]


def fit(
    sets: Sequence[np.ndarray],
    classes: np.ndarray,
    number: int,
    grid: Grid,
    mesh: Mesh,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    report: Report,
) -> Fitted:
    """Train all classifiers of `grid` at the same time, on the same batches; they are divided over the devices.

    SGD with momentum 0.9, the rate falling with half a cosine from step to step.

    Args:
        sets: features float32 `[N, D]` of the same images, one array a set of crops; epochs take turns.
        classes: int `[N]`.
        number: of classes.
        grid: what is tried.
        mesh: the devices.
        epochs, batch_size: of the training.
        seed: of weights and order.
        report: told how far it is.
    """
    size, width = sets[0].shape
    batch = min(batch_size, size)
    members = [(rate, decay) for rate in grid.rates for decay in grid.decays]
    # As many as divide over the devices; those too many are copies that nobody asks for.
    padded = -(-len(members) // mesh.size) * mesh.size
    rates, decays = np.resize(np.asarray(members, np.float32), (padded, 2)).T
    mean, scale = _statistics(sets, grid.norms)
    one = initial(seed, width, number)
    shape = (len(grid.norms), padded)
    divided = mesh_lib.sharded(mesh, axis=1)

    def start(make):
        spread = jax.tree.map(lambda x: jnp.broadcast_to(make(x), (*shape, *x.shape)), one)
        return jax.device_put(spread, divided)

    classifiers, buffers = start(lambda x: x), start(jnp.zeros_like)
    steps = -(-size // batch)
    rate_at = optim.learning_rate(1.0, "cosine_per_step", epochs, steps)
    for epoch in range(epochs):
        features = sets[epoch % len(sets)]
        places = np.random.default_rng((seed, epoch)).permutation(size)
        for n, some in enumerate(_blocks(size, batch)):
            chosen = _fill(places[some], batch)
            factor = float(rate_at(jnp.asarray(epoch * steps + n)))
            classifiers, buffers = _step_all(
                classifiers, buffers, mean, scale, features[chosen], classes[chosen],
                np.arange(batch) < len(places[some]), rates * np.float32(factor), decays,
            )  # fmt: skip
        jax.block_until_ready(classifiers)
        report(f"classifiers at once: {shape[0] * len(members)}  epoch {epoch + 1}/{epochs}")
    return Fitted(grid, classifiers, mean, scale)


def _statistics(sets: Sequence[np.ndarray], norms: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    width = sets[0].shape[1]
    center, spread = np.zeros(width), np.ones(width)
    if any(norms):
        center = np.mean([x.mean(0, dtype=np.float64) for x in sets], 0)
        squares = [
            np.sum([((x[s] - center) ** 2).sum(0) for s in _blocks(len(x), 4096)], 0) for x in sets
        ]
        spread = 1 / np.sqrt(np.sum(squares, 0) / sum(map(len, sets)) + EPSILON)
    mean = np.stack([np.where(norm, center, 0)[None] for norm in norms])
    scale = np.stack([np.where(norm, spread, 1)[None] for norm in norms])
    return mean.astype(np.float32), scale.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search chose.

    Attributes:
        rate, decay, norm: the settings that were best on images held apart.
        held_out: share of those classified rightly, of every setting, float64 `[V, R, W]`.
        best: the largest of these.
        test: share of test images that the chosen classifier gets right, once it is trained on all training images.
        edges: a sentence for each end of the grid that the choice lies at, beyond which a better one may be.
    """

    rate: float
    decay: float
    norm: bool
    held_out: np.ndarray
    best: float
    test: float
    edges: list[str]


def search(
    sets: Sequence[np.ndarray],
    classes: np.ndarray,
    test: np.ndarray,
    truth: np.ndarray,
    number: int,
    grid: Grid,
    mesh: Mesh,
    *,
    epochs: int = 30,
    batch_size: int = 256,
    seed: int = 0,
    report: Report,
) -> Found:
    """Train `grid` on nine tenths of the images, choose on the centre crops of the last, train the choice on all.

    Args:
        sets: features float32 `[N, D]` of the training images, one array a set of crops; the first is the centre crops.
        classes: int `[N]`.
        test, truth: features `[M, D]` and classes `[M]` of the test images, which choose nothing.
        number: of classes.
        grid, mesh, epochs, batch_size, seed, report: as in `fit`.
    """
    size = len(classes)
    apart = np.random.default_rng(seed).permutation(size) < max(size // 10, 1)
    how: Any = dict(epochs=epochs, batch_size=batch_size, seed=seed, report=report)
    fitted = fit([x[~apart] for x in sets], classes[~apart], number, grid, mesh, **how)
    right, loss = fitted.scores(sets[0][apart], classes[apart])
    finite = np.where(np.isfinite(loss), loss, np.inf)
    right = np.where(np.isfinite(loss), right, 0.0)
    v, r, w = np.unravel_index(np.lexsort((finite.ravel(), -right.ravel()))[0], right.shape)
    rate, decay, norm = grid.rates[r], grid.decays[w], grid.norms[v]
    again = fit(sets, classes, number, Grid([rate], [decay], [norm]), mesh, **how)
    return Found(
        rate, decay, norm, right, float(right[v, r, w]), float(again.scores(test, truth)[0][0, 0, 0]),
        _edges(grid, rate, decay),
    )  # fmt: skip


def _edges(grid: Grid, rate: float, decay: float) -> list[str]:
    found = []
    for name, value, tried in (
        ("learning rate", rate, grid.rates),
        ("weight decay", decay, grid.decays),
    ):
        ends = {min(tried): "smallest", max(tried): "largest"}
        if value in ends and value > 0:
            found.append(f"the best {name}, {value:g}, is the {ends[value]} that was tried")
    return found


def crop_recipe(name: str, subject: Subject) -> recipes.Recipe:
    """The recipe `name` for training crops, of the size of the run's views."""
    return recipes.create(name, subject.config.image_size, channels=subject.config.channels)


def feature_sets(
    subject: Subject,
    encode: Callable[[Any], Any],
    recipe: recipes.Recipe,
    crops: int,
    report: Report,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Features float32 `[N, D]` of the training images' centre crops and of `crops` sets of drawn ones, and classes `[N]`."""
    center, classes = subject.extract(subject.train, encode, report)
    drawn = partial(subject.extract, subject.train, encode, report, recipe)
    seed = subject.config.seed
    return [center, *(drawn(crops=(seed, epoch))[0] for epoch in range(crops))], classes
