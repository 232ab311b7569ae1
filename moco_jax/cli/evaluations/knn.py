"""`evaluate knn`: the nearest training images vote, for several k and temperatures in one pass."""

from typing import Any

import numpy as np

from moco_jax.base.console import table
from moco_jax.cli.evaluations.common import Task, about, open_images, percent
from moco_jax.evaluation import knn
from moco_jax.evaluation.images import EvaluationData
from moco_jax.inference.trained_encoder import TrainedEncoder

NEIGHBOURS, TEMPERATURES = (10, 20, 100, 200), (0.03, 0.07, 0.1, 0.2)


def run(task: Task) -> dict[str, Any]:
    """Print the kNN accuracies of each encoder as a table, and return what is written."""
    console, config, given = task.console, task.trained.config, task.given
    features = given.features or config.knn_features
    data = open_images(task, features)
    bank = len(data.train.indices)
    ks = given.k or sorted({*NEIGHBOURS, config.knn_k})
    temperatures = given.temperature or sorted({*TEMPERATURES, config.knn_temperature})
    if ks[-1] > bank:
        cut = ", ".join(str(k) for k in ks if k > bank)
        console.line(f"k={cut} is cut to {bank}, the number of training images")
        ks = sorted({min(k, bank) for k in ks})
    results: list[dict[str, Any]] = []
    rows = []
    for name, trained in task.encoders.items():
        scores = _scores(task, data.seen_by(trained), trained, features, ks, temperatures)
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
    return about(task, data, "knn", features) | {"results": results}


def _scores(
    task: Task,
    data: EvaluationData,
    trained: TrainedEncoder,
    features: str,
    ks: list[int],
    temperatures: list[float],
) -> dict[tuple[int, float], float]:
    """Compute the accuracy of the encoder `trained` for each k and temperature."""
    encode = data.encoder(trained, features)
    queries, truth = data.extract(data.test, encode, task.report)
    nearest, classes = knn.Search(queries, ks[-1], data.mesh), []
    for some, named in data.stream(data.train, encode, task.report):
        nearest.add(some)
        classes.append(named)
    cosines, places = nearest.result()
    grid = knn.votes(cosines, np.concatenate(classes)[places], ks, temperatures)
    return {at: float(np.mean(voted == truth)) for at, voted in grid.items()}
