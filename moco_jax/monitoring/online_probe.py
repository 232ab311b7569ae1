"""An online probe: a linear classifier of pooled features that is trained beside a run.

It learns in a program of its own from features that each step has computed anyway. Nothing of it
reaches the encoder, and without it the run's numbers are the same to the bit.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moco_jax.base import digests
from moco_jax.data.sources.labels import MISSING
from moco_jax.evaluation.decide import decide
from moco_jax.evaluation.linear import Classifier, logits, predict, sgd_step
from moco_jax.method.batch import Metrics
from moco_jax.method.state import all_finite
from moco_jax.monitoring.scores import Monitor
from moco_jax.parallel import mesh as mesh_lib

# The learning rate stays, as the encoder never stops changing. Rows have a length of about 1, so
# that no curvature is above 1/2, and SGD with momentum 0.9 is stable to 2 (1 + 0.9) / (1/2) = 7.6.
RATE = 5.0
MEMORY = 0.1  # weight of a batch in the running statistics, as in PyTorch's BatchNorm
EPSILON = 1e-5  # of the variance, as there
MOST_WEIGHTS = 2**23  # beyond so many the probe would take memory and time that a run would miss


class ProbeState(NamedTuple):
    """A linear classifier behind a BatchNorm without affine, and how it is trained.

    Attributes:
        classifier, buffer: weights float32, and their momentum in SGD.
        mean, variance: float32 `[D]`, running statistics of the features.
        steps: int32, those it has learnt from.
    """

    classifier: Classifier
    buffer: Classifier
    mean: Any
    variance: Any
    steps: Any


def initial(width: int, classes: int) -> ProbeState:
    """Make the state, in NumPy, of a probe of `[B, width]` that has learnt nothing: all is 0."""

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    empty = Classifier(zeros(width, classes), zeros(classes))
    return ProbeState(empty, empty, zeros(width), zeros(width), np.zeros((), np.int32))


def standardise(features: Any, mean: Any, variance: Any) -> Any:
    """Shift and scale `features` `[B, D]` by statistics `[D]`, in NumPy or JAX.

    Each feature gets a variance of 1 / D, and so a row a length of about 1, however many there are.
    """
    return (features - mean) / ((variance + EPSILON) * features.shape[1]) ** 0.5


def learn(state: ProbeState, features: jax.Array, classes: jax.Array) -> tuple[ProbeState, Metrics]:
    """Take one step of SGD on the cross-entropy; pure, to jit.

    The state stays as it is where no row has a class, or anything new is not finite.

    Args:
        state: before the step.
        features: `[B, D]`.
        classes: int32 `[B]`, `MISSING` for rows that do not count.

    Returns:
        The state, and float32 scalars: `probe_right`, rows whose class was told rightly before the
        step, of `probe_asked`, rows that have one.
    """
    x, present = features.astype(jnp.float32), classes != MISSING
    weight = jnp.maximum(1 / (state.steps + 1.0), MEMORY)
    mean = state.mean + weight * (x.mean(0) - state.mean)
    variance = state.variance + weight * (x.var(0) - state.variance)
    inputs = standardise(x, mean, variance)
    right = present & (decide(logits(state.classifier, inputs)) == classes)
    classifier, buffer, _ = sgd_step(
        state.classifier, state.buffer, inputs, classes, present, jnp.float32(RATE)
    )
    new = ProbeState(classifier, buffer, mean, variance, state.steps + 1)
    counts = present.any() & all_finite(new)
    kept = jax.tree.map(lambda n, o: jnp.where(counts, n, o).astype(o.dtype), new, state)
    sums = {"probe_right": right, "probe_asked": present}
    return kept, {name: rows.sum(dtype=jnp.float32) for name, rows in sums.items()}


@functools.cache
def _compiled(mesh: Mesh) -> Any:
    return jax.jit(learn, out_shardings=mesh_lib.replicated(mesh), donate_argnums=0)


class Known(NamedTuple):
    """Classes int32 `[N]`, `MISSING` for none, of the images `indices` int64 `[N]`, ascending."""

    indices: np.ndarray
    classes: np.ndarray

    def of(self, some: np.ndarray) -> np.ndarray:
        """Look up the classes int32 `[n]` of `some` images; `MISSING` for those not among these."""
        places = np.minimum(np.searchsorted(self.indices, some), len(self.indices) - 1)
        return np.where(self.indices[places] == some, self.classes[places], MISSING)


class OnlineProbe:
    """The probe of one run: it is taught of some images, and tested with others.

    Attributes:
        state: on every device.
        facts: what a state that was saved must agree with to be gone on with.
    """

    def __init__(self, taught: Known, asked: Known, called: list[str], width: int, mesh: Mesh):
        """Begin a probe that has learnt nothing.

        Args:
            taught: classes of the images that it may learn from.
            asked: classes of the images that `score` asks for.
            called: the classes' names.
            width: D, of the features.
            mesh: the devices.
        """
        self._taught, self._asked, self._mesh = taught, asked, mesh
        self.state = mesh_lib.to_every_device(mesh, initial(width, len(called)))
        self.facts = digests.of_tree((width, called))

    def classes_of(self, indices: np.ndarray) -> np.ndarray:
        """Return what it is told of training images `indices`: classes int32, or `MISSING`."""
        return self._taught.of(indices)

    def learn(self, features: jax.Array, classes: jax.Array) -> Metrics:
        """Learn from one batch, as `learn`; this waits for nothing, and every host must call it."""
        self.state, metrics = _compiled(self._mesh)(self.state, features, classes)
        return metrics

    def score(self, features: np.ndarray, indices: np.ndarray) -> dict[str, float]:
        """Say which share of images is classified rightly: `probe`, or nothing without labels.

        Args:
            features: float32 `[M, D]`, pooled.
            indices: int64 `[M]`, their images; it is never taught of them.
        """
        classes = self._asked.of(indices)
        known = classes != MISSING
        if not known.any():
            return {}
        state = jax.device_get(self.state)
        with np.errstate(invalid="ignore", over="ignore"):  # NaN is no class, and counts as wrong
            inputs = standardise(features[known], state.mean, state.variance)
            found = predict(state.classifier, inputs)
        return {"probe": float(np.mean(found == classes[known]))}


def beside(monitor: Monitor, width: int) -> tuple[OnlineProbe | None, list[str]]:
    """Make the probe that goes with `monitor`: taught of the images that it searches.

    It is tested with those that the monitor classifies. None where the labels are not of two
    classes, or of very many, or no image that is classified is of a class that is searched.
    `width`: D, of the pooled features.

    Returns:
        The probe, and a line on each thing that a person should know.
    """
    searched, asked = monitor.bank_indices, monitor.query_indices
    matched = monitor.matched(searched, asked)
    if matched is None:
        return None, []
    learnt = np.unique(matched.train[matched.train != MISSING])
    if len(learnt) < 2 or not np.isin(matched.test, learnt).any():
        return None, []
    classes = len(matched.called)
    if width * classes > MOST_WEIGHTS:
        return None, [
            f"no online probe: it would have {width:,} features times {classes:,} classes of "
            f"weights, more than {MOST_WEIGHTS:,}"
        ]
    taught, known = (
        Known(indices, numbers.astype(np.int32))
        for indices, numbers in ((searched, matched.train), (asked, matched.test))
    )
    return OnlineProbe(taught, known, matched.called, width, monitor.mesh), []


def share(numbers: dict[str, float]) -> dict[str, float]:
    """Replace, in means over some steps, `probe_right` and `probe_asked` by `probe_train`.

    That is the share of the labelled training views that the probe told rightly before it learnt
    from them; it is left out where none had a label.
    """
    left = {n: value for n, value in numbers.items() if n not in ("probe_right", "probe_asked")}
    asked = numbers.get("probe_asked", 0.0)
    return left | {"probe_train": numbers["probe_right"] / asked} if asked else left
