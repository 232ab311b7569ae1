"""Trains linear classifiers of many learning rates and weight decays at once, on fixed features.

`search` holds a tenth of the images apart, chooses by it, and trains the choice on all.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moco_jax.data import resident
from moco_jax.data.views import recipes
from moco_jax.evaluation.ahead import Ahead
from moco_jax.evaluation.decide import decide
from moco_jax.evaluation.images import EvaluationData, Report
from moco_jax.evaluation.linear import Classifier, blocks, initial, logits, losses, sgd_step
from moco_jax.method import optimizers
from moco_jax.parallel import hosts
from moco_jax.parallel import mesh as mesh_lib

EPSILON = 1e-5  # of BatchNorm
SENT = 2**26  # bytes of features that are sent to the devices at once
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
DECAYS = (0.0, 1e-5, 1e-4, 1e-3)


def _fill(x: np.ndarray, rows: int) -> np.ndarray:
    """Append rows of zeros to `x`, so that there are `rows`."""
    return np.concatenate([x, np.zeros((rows - len(x), *x.shape[1:]), x.dtype)])


class Grid(NamedTuple):
    """Classifiers that are trained together: V normalisations times R rates times W decays.

    Attributes:
        rates: floats `[R]`.
        decays: floats `[W]`.
        norms: bools `[V]`: whether BatchNorm without affine stands before the classifier. As
            features do not change, its statistics are those of all of them.
    """

    rates: Sequence[float] = RATES
    decays: Sequence[float] = DECAYS
    norms: Sequence[bool] = (False, True)


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """Settings of a training that all classifiers of a grid share.

    Attributes:
        number: of classes.
        epochs, batch_size: length, and rows at a step.
        seed: of weights and order.
    """

    number: int
    epochs: int = 30
    batch_size: int = 256
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The trained classifiers of a grid.

    Attributes:
        grid: their settings.
        classifiers: arrays `[V, R * W, ...]`.
        mean, scale: float32 `[V, 1, D]`: features are turned into `(x - mean) * scale`.
        mesh: the devices that have them.
    """

    grid: Grid
    classifiers: Classifier
    mean: np.ndarray
    scale: np.ndarray
    mesh: Mesh

    def scores(
        self, features: np.ndarray, classes: np.ndarray, block: int = 1024
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score every classifier: share of rows classified rightly, and mean cross-entropy.

        Both are float64 `[V, R, W]`.
        """
        shape = (len(self.grid.norms), len(self.grid.rates), len(self.grid.decays))
        sums, block = np.zeros((2, *shape)), min(block, len(features))
        for some in blocks(len(features), block):
            rows = len(features[some])
            counted = _count(
                self.classifiers,
                self.mean,
                self.scale,
                _fill(features[some], block),
                _fill(classes[some], block),
                np.arange(block) < rows,
            )
            counts = np.asarray(mesh_lib.to_hosts(self.mesh, counted), np.float64)
            sums += counts[:, :, : shape[1] * shape[2]].reshape(sums.shape)
        right, loss = sums / len(features)
        return right, loss


@jax.jit
def _count(classifiers, mean, scale, features, classes, present):
    def one(classifier, features):
        right = decide(logits(classifier, features)) == classes
        lost = losses(classifier, features, classes)
        return jnp.sum(right & present), jnp.sum(jnp.where(present, lost, 0))

    return jax.vmap(jax.vmap(one, (0, None)))(classifiers, (features - mean) * scale)


@jax.jit(donate_argnums=(0, 1))
def _steps(classifiers, buffers, mean, scale, rows, batches, rates, decays):
    """Step all classifiers once for each of `batches`, which name places in `rows`."""
    features, classes = rows
    over_members = jax.vmap(sgd_step, (0, 0, None, None, None, 0, 0))
    over_norms = jax.vmap(over_members, (0, 0, 0, None, None, None, None))

    def step(state, batch):
        places, present, factor = batch
        some, named = (jnp.take(x, places, axis=0, mode="clip") for x in (features, classes))
        scaled, now = (some - mean) * scale, rates * factor
        return over_norms(state[0], state[1], scaled, named, present, now, decays)[:2], None

    return jax.lax.scan(step, (classifiers, buffers), batches)[0]


@jax.jit
def _mark(classifiers):
    return classifiers.bias.ravel()[:1]


def _stay_on_the_host(sets: Sequence[np.ndarray], mesh: Mesh) -> bool:
    """Whether devices have no room for all features, or share the memory that these are in.

    Hosts agree on it, as their devices run one program.
    """
    limit, bytes_of = resident.memory_limit(), sum(x.nbytes for x in sets)
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    return hosts.broadcast(is_cpu or bool(limit and bytes_of > resident.SHARE * limit))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The features of a training, on the devices where they fit.

    Attributes:
        sets: arrays `[N, D]`, as of `fit`; on every device, or on the host.
        classes: int `[N]`, beside them.
        held: whether they are on the devices.
    """

    sets: Sequence[Any]
    classes: Any
    held: bool

    @classmethod
    def of(cls, sets: Sequence[np.ndarray], classes: np.ndarray, mesh: Mesh) -> "_Rows":
        """Copy the features to every device of `mesh`, unless they stay on the host."""
        if _stay_on_the_host(sets, mesh):
            return cls(sets, classes, held=False)
        whole = list(sets), classes.astype(np.int32)
        features, named = mesh_lib.to_every_device(mesh, whole)
        return cls(features, named, held=True)

    def steps(self, batch: int) -> int:
        """Return how many steps one call takes, at most: all where nothing is sent for them."""
        if self.held:
            return sys.maxsize
        return max(SENT // max(batch * self.sets[0][0].nbytes, 1), 1)

    def of_epoch(self, epoch: int, places: np.ndarray) -> tuple[tuple[Any, Any], np.ndarray]:
        """Return the rows that steps take, and where in them each batch of `places` `[S, B]` is."""
        features = self.sets[epoch % len(self.sets)]
        if self.held:
            return (features, self.classes), places
        sent = features[places.ravel()], self.classes[places.ravel()]
        return sent, np.arange(places.size, dtype=np.int32).reshape(places.shape)


def fit(
    sets: Sequence[np.ndarray],
    classes: np.ndarray,
    grid: Grid,
    mesh: Mesh,
    settings: FitSettings,
    report: Report,
) -> Fitted:
    """Train all classifiers of `grid` at once on the same batches, divided over the devices.

    SGD with momentum 0.9, the rate falling with half a cosine from step to step.

    Args:
        sets: features float32 `[N, D]` of the same images, one array a set of crops; epochs take
            turns.
        classes: int `[N]`.
        grid, mesh: the settings to try, and the devices.
        settings: of the training, common to all classifiers.
        report: called with a line on how far the training is.
    """
    size, width = sets[0].shape
    epochs, seed = settings.epochs, settings.seed
    batch = min(settings.batch_size, size)
    members = [(rate, decay) for rate in grid.rates for decay in grid.decays]
    # Copies fill up the members, so that they divide over the devices; nobody reads the copies.
    padded = -(-len(members) // mesh.size) * mesh.size
    rates, decays = np.resize(np.asarray(members, np.float32), (padded, 2)).T
    mean, scale = _statistics(sets, grid.norms)
    shape = (len(grid.norms), padded)
    first = jax.device_get(initial(seed, width, settings.number))
    classifiers = _spread(first, shape, mesh)
    buffers = _spread(jax.tree.map(np.zeros_like, first), shape, mesh)
    steps = -(-size // batch)
    schedule = optimizers.learning_rate(
        1.0, schedule="cosine_per_step", epochs=epochs, steps_per_epoch=steps
    )
    factors = optimizers.values(schedule, epochs * steps).astype(np.float32)
    present = (np.arange(steps * batch) < size).reshape(steps, batch)
    rows, ahead = _Rows.of(sets, classes, mesh), Ahead(1)
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(size)
        places = _fill(order.astype(np.int32), steps * batch).reshape(steps, batch)
        for some in blocks(steps, rows.steps(batch)):
            taken, within = rows.of_epoch(epoch, places[some])
            batches = within, present[some], factors[epoch * steps :][some]
            classifiers, buffers = _steps(
                classifiers, buffers, mean, scale, taken, batches, rates, decays
            )
            # The classifiers themselves are given to the next call.
            ahead.wait(_mark(classifiers))
        jax.block_until_ready(classifiers)
        report(f"classifiers at once: {shape[0] * len(members)}  epoch {epoch + 1}/{epochs}")
    return Fitted(grid, classifiers, mean, scale, mesh)


def _spread(classifier: Classifier, shape: tuple[int, int], mesh: Mesh) -> Classifier:
    """Copy a classifier to every member of a grid of `shape`, divided over the devices."""

    def copies(x: np.ndarray) -> jax.Array:
        return mesh_lib.divided(mesh, np.broadcast_to(x, (*shape, *x.shape)), axis=1)

    return jax.tree.map(copies, jax.device_get(classifier))


def _statistics(sets: Sequence[np.ndarray], norms: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    width = sets[0].shape[1]
    center, spread = np.zeros(width), np.ones(width)
    if any(norms):
        center = np.mean([x.mean(0, dtype=np.float64) for x in sets], 0)
        squares = [
            np.sum([((x[s] - center) ** 2).sum(0) for s in blocks(len(x), 4096)], 0) for x in sets
        ]
        spread = 1 / np.sqrt(np.sum(squares, 0) / sum(map(len, sets)) + EPSILON)
    mean = np.stack([np.where(norm, center, 0)[None] for norm in norms])
    scale = np.stack([np.where(norm, spread, 1)[None] for norm in norms])
    return mean.astype(np.float32), scale.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The choice of a search.

    Attributes:
        rate, decay, norm: the settings that were best on images held apart.
        held_out: share of those classified rightly, of every setting, float64 `[V, R, W]`.
        best: the largest of these.
        test: share of test images that the chosen classifier gets right, once it is trained on
            all training images.
        edges: a sentence for each end of the grid that the choice lies at, beyond which a better
            one may be.
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
    grid: Grid,
    mesh: Mesh,
    settings: FitSettings,
    report: Report,
) -> Choice:
    """Train `grid` on nine tenths of the images, choose on the last, train the choice on all.

    The choice is made on centre crops.

    Args:
        sets: features float32 `[N, D]` of the training images, one array a set of crops; the
            first is the centre crops.
        classes: int `[N]`.
        test, truth: features `[M, D]` and classes `[M]` of the test images, which choose
            nothing.
        grid, mesh, settings, report: as in `fit`.
    """
    size = len(classes)
    apart = np.random.default_rng(settings.seed).permutation(size) < max(size // 10, 1)
    fitted = fit([x[~apart] for x in sets], classes[~apart], grid, mesh, settings, report)
    right, loss = fitted.scores(sets[0][apart], classes[apart])
    finite = np.where(np.isfinite(loss), loss, np.inf)
    right = np.where(np.isfinite(loss), right, 0.0)
    v, r, w = np.unravel_index(np.lexsort((finite.ravel(), -right.ravel()))[0], right.shape)
    rate, decay, norm = grid.rates[r], grid.decays[w], grid.norms[v]
    again = fit(sets, classes, Grid([rate], [decay], [norm]), mesh, settings, report)
    return Choice(
        rate=rate,
        decay=decay,
        norm=norm,
        held_out=right,
        best=float(right[v, r, w]),
        test=float(again.scores(test, truth)[0][0, 0, 0]),
        edges=_edges(grid, rate, decay),
    )


def _edges(grid: Grid, rate: float, decay: float) -> list[str]:
    edges = []
    for name, value, tried in (
        ("learning rate", rate, grid.rates),
        ("weight decay", decay, grid.decays),
    ):
        ends = {min(tried): "smallest", max(tried): "largest"}
        if value in ends and value > 0:
            edges.append(f"the best {name}, {value:g}, is the {ends[value]} that was tried")
    return edges


def feature_sets(
    data: EvaluationData,
    encode: Callable[[Any], Any],
    recipe: recipes.Recipe,
    crops: int,
    report: Report,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Compute features float32 `[N, D]` of centre crops and of `crops` sets of drawn crops.

    Returns:
        One array a set, the centre crops first, and classes `[N]`.
    """
    center, classes = data.extract(data.train, encode, report)
    drawn = partial(data.extract, data.train, encode, report, recipe)
    seed = data.config.seed
    return [center, *(drawn(crops=(seed, (epoch,)))[0] for epoch in range(crops))], classes
