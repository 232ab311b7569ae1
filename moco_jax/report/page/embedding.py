"""Compares the encoder before training and now: nearest neighbours, and a map of images.

This takes longer than the rest of the page: one pass of some images through two encoders, and
t-SNE.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from moco_jax.base.errors import UserError
from moco_jax.data import labelled_views
from moco_jax.data.configured import open_images, recipe_of
from moco_jax.data.sources import Source, labels
from moco_jax.data.views import recipes
from moco_jax.evaluation import features, knn
from moco_jax.evaluation.held_out import choose
from moco_jax.inference import trained_encoder
from moco_jax.parallel import mesh as mesh_lib
from moco_jax.report.page.run import Run

QUERIES, NEAREST = 8, 5
FEW = 30  # with fewer images a map is by principal components
BATCH = 250

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images as an encoder sees them.

    Attributes:
        images: uint8 `[N, S, S, C]`.
        names: as their source gives them.
        classes: of each, as text, '' where it has none; None where none has any.
    """

    images: np.ndarray
    names: list[str]
    classes: list[str] | None


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Neighbours and map of the same images under two encoders of one run.

    The encoders are the untrained one and that of a checkpoint.

    Attributes:
        step: of the checkpoint.
        bank, queries: the images that are searched and mapped, N, and those that neighbours are
            looked for, Q.
        nearest: encoder -> int `[Q, K]`, rows of the bank, nearest first; 'before training' and
            'after' or 'now'.
        agreement: encoder -> share of the bank's images whose nearest other image is of their
            class, among those where both have one; empty without classes.
        places: float32 `[N, 2]`, each axis from 0 to 1.
        method: how the map was made.
    """

    step: int
    bank: Pictures
    queries: Pictures
    nearest: dict[str, np.ndarray]
    agreement: dict[str, float]
    places: np.ndarray
    method: str


def look(run: Run, step: int, limit: int, report: Report) -> Embedding:
    """Encode images with the encoder of `run` after `step` and with the untrained one.

    At most `limit` images are taken, evenly spread.

    Raises:
        UserError: images or checkpoint are not there.
    """
    trained = trained_encoder.load(str(run.place), step=step)
    bank, queries = _pictures(run, limit)
    config = trained.config
    encode = features.make_encode(
        trained.encoder,
        config.knn_features,
        config.mean,
        config.std,
        np.dtype("float32"),
        mesh_lib.create_mesh(jax.devices()[:1]),
    )
    nearest: dict[str, np.ndarray] = {}
    agreement: dict[str, float] = {}
    images = np.concatenate([bank.images, queries.images])
    for title, one in {
        "before training": trained_encoder.untrained(trained),
        f"at step {step:,}": trained,
    }.items():
        report(f"{run.name}: {len(images):,} images, encoder {title}")
        made = [
            np.asarray(encode(one.variables, jnp.asarray(_whole(images, at))))
            for at in range(0, len(images), BATCH)
        ]
        vectors = knn.unit(np.concatenate(made)[: len(images)])
        ours, asked = vectors[: len(bank.images)], vectors[len(bank.images) :]
        nearest[title] = np.asarray(knn.nearest(ours, asked, min(NEAREST, len(ours)))[1])
        if bank.classes is not None:
            share = _agreement(ours, np.asarray(bank.classes))
            agreement |= {} if share is None else {title: share}
    report(f"{run.name}: a map of {len(ours):,} images")
    places, method = flatten(ours)
    return Embedding(step, bank, queries, nearest, agreement, places, method)


def _whole(images: np.ndarray, at: int) -> np.ndarray:
    """Return the images from `at` on as a batch of full size, so that one program is compiled.

    The last batch is filled up with images whose features are left out again.
    """
    size = min(BATCH, len(images))
    return images[np.arange(at, at + size) % len(images)]


def _agreement(vectors: np.ndarray, classes: np.ndarray) -> float | None:
    rows = np.asarray(knn.nearest(vectors, vectors, min(2, len(vectors)))[1])
    own = rows[:, 0] == np.arange(len(rows))
    others = np.where(own, rows[:, -1], rows[:, 0])
    both = (classes != "") & (classes[others] != "")
    return float(np.mean(classes[others][both] == classes[both])) if both.any() else None


def flatten(vectors: np.ndarray) -> tuple[np.ndarray, str]:
    """Map unit vectors `[N, D]` to a plane, float32 `[N, 2]` with each axis from 0 to 1.

    Returns:
        The places, and how they were computed.
    """
    if len(vectors) < 2:
        return np.full((len(vectors), 2), 0.5, np.float32), "a single image"
    if len(vectors) < FEW:
        flat = PCA(2, random_state=0).fit_transform(vectors)
        method = "the first two principal components"
    else:
        perplexity = min(30, len(vectors) // 4)
        # In a small problem threads mostly wait for each other, even more beside a run in training.
        with threadpool_limits(1):
            flat = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)
        method = (
            f"t-SNE, perplexity {perplexity}: who is near whom tells something, distances far off"
            " do not"
        )
    low = flat.min(0)
    return ((flat - low) / np.maximum(flat.max(0) - low, 1e-12)).astype(np.float32), method


def _pictures(run: Run, limit: int) -> tuple[Pictures, Pictures]:
    """Read images that the run's monitor searches, and a few that it classifies."""
    config, index_dir = run.config, str(run.place / "index")
    source = open_images(config, config.split, index_dir)
    others = open_images(config, config.eval_split, index_dir) if config.eval_split else None
    bank, asked = choose(source, others, config.knn_examples, config.seed)
    recipe = recipe_of(config)
    return (
        _read(source, recipe, _spread(bank, limit), config.workers),
        _read(others or source, recipe, _spread(asked, QUERIES), config.workers),
    )


def _spread(indices: np.ndarray, count: int) -> np.ndarray:
    return indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)]


def _read(source: Source, recipe: recipes.Recipe, indices: np.ndarray, workers: int) -> Pictures:
    images, kept = [], []
    batches = labelled_views.evaluation_batches(source, recipe, indices[:, None], workers)
    for index, batch in zip(indices, batches, strict=True):
        if batch["ok"][0]:
            images.append(batch["image"][0])
            kept.append(int(index))
    if not kept:
        raise UserError(f"none of {len(indices)} images of {source.name(0)} can be decoded")
    numbers, classes = labels.known(source, np.asarray(kept)), None
    if numbers is not None:
        classes = [labels.called(source.classes, number) for number in numbers.tolist()]
    return Pictures(np.stack(images), source.names(np.asarray(kept)), classes)
