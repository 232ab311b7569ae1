"""`evaluate knn`: the nearest training images vote, for several k and temperatures in one pass."""

from typing import Any

import numpy as np

from moco_jax.base.console import table
from moco_jax.cli.evaluations.common import Task, about, open_images, percent
from moco_jax.evaluation import knn
from moco_jax.evaluation.images import Subject
from moco_jax.inference.trained_encoder import Trained

NEIGHBOURS, TEMPERATURES = (10, 20, 100, 200), (0.03, 0.07, 0.1, 0.2)


def run(task: Task) -> dict[str, Any]:
    """Print the kNN accuracies of each encoder as a table, and return what is written."""
    console, config, given = task.console, task.found.config, task.given
    features = given.features or config.knn_features
    subject = open_images(task, features)
    bank = len(subject.train.indices)
    ks = given.k or sorted({*NEIGHBOURS, config.knn_k})
    temperatures = given.temperature or sorted({*TEMPERATURES, config.knn_temperature})
    if ks[-1] > bank:
        cut = ", ".join(str(k) for k in ks if k > bank)
        console.line(f"k={cut} is cut to {bank}, the number of training images")
        ks = sorted({min(k, bank) for k in ks})
    results: list[dict[str, Any]] = []
    rows = []
    for name, found in task.encoders.items():
        scores = _scores(task, subject, found, features, ks, temperatures)
        results += [
            {"encoder": name, "k": k, "temperature": t, "accuracy": scores[k, t]} for k, t in scores
        ]
        rows += [[name, str(k), *(percent(scores[k, t]) for t in temperatures)] for k in ks]
    console.line("\n" + table(["encoder", "k", *(f"T {t:g}" for t in temperatures)], rows))
    own = [
        r for r in results if (r["k"], r["temperature"]) == (config.knn_k, config.knn_temperature)
    ]
    if own:
        console.line(
            f"as the run's monitor votes (k {config.knn_k}, T {config.knn_temperature:g}): "
            + ", ".join(f"{r['encoder']} {percent(r['accuracy'])}" for r in own)
        )
    return about(task, subject, "knn", features) | {"results": results}


def _scores(
    task: Task,
    subject: Subject,
    found: Trained,
    features: str,
    ks: list[int],
    temperatures: list[float],
) -> dict[tuple[int, float], float]:
    """The accuracy with the encoder `found` for each k and temperature."""
    encode = subject.encoder(found, features)
    queries, truth = subject.extract(subject.test, encode, task.report)
    nearest, classes = knn.Search(queries, ks[-1], subject.mesh), []
    for some, named in subject.stream(subject.train, encode, task.report):
        nearest.add(some)
        classes.append(named)
    cosines, places = nearest.result()
    grid = knn.votes(cosines, np.concatenate(classes)[places], ks, temperatures)
    return {at: float(np.mean(voted == truth)) for at, voted in grid.items()}
