"""The picture of nearest neighbours: some images, and what each encoder finds closest to them."""

import jax
import numpy as np
from etils import epath

from moco_jax.data import pipeline
from moco_jax.data.sources import Source
from moco_jax.evaluation import knn
from moco_jax.evaluation.monitor import Monitor
from moco_jax.report import figures


def draw(
    path: epath.Path, monitor: Monitor, encoders: dict[str, dict], count: int = 10, k: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` query images, evenly spaced, with their `k` nearest under each of the encoders.

    Returns:
        what the last of them makes of the images that are searched: features float32 `[N, D]` and indices int64 `[N]`.
    """
    columns, right = {}, {}
    every = monitor.query_indices
    few = every[np.linspace(0, len(every) - 1, min(count, len(every))).astype(int)]
    for title, weights in encoders.items():
        bank, bank_indices, queries, query_indices = monitor.features(
            lambda images, weights=weights: monitor.encode(weights, images), few
        )
        rows = knn.nearest(bank, queries, min(k, len(bank)))[1]
        found = bank_indices[rows]
        pictures = views(monitor.bank, monitor, found.ravel())
        columns[title] = pictures.reshape(*found.shape, *pictures.shape[1:])
        labels, truth = (
            monitor.bank.labels(found.ravel()),
            monitor.queries.labels(query_indices),
        )
        if labels is not None and truth is not None:
            right[title] = labels.reshape(found.shape) == truth[:, None]
    if jax.process_index() == 0:
        asked = views(monitor.queries, monitor, query_indices)
        figures.neighbours(path, asked, columns, right or None)
    return bank, bank_indices


def views(source: Source, monitor: Monitor, indices: np.ndarray) -> np.ndarray:
    """The images `indices` int `[N]` of `source` as evaluation sees them: uint8 `[N, S, S, C]`."""
    batches = pipeline.evaluation_batches(source, monitor.recipe, indices[:, None], monitor.workers)
    return np.concatenate([batch["image"] for batch in batches])
