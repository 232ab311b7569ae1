"""`evaluate knn`: the nearest training images vote, for several k and temperatures at the cost of one pass."""

from typing import Any

import numpy as np

from moco_jax import number_flags
from moco_jax.evaluation import knn
from moco_jax.evaluation.commands.common import FEATURES, Task, about, open_images, percent
from moco_jax.report.console import table
from moco_jax.settings.kinds import LARGEST, Range

K = number_flags.DEFINE_numbers(
    "k",
    [],
    "knn: numbers of neighbours, all tried at the cost of the largest.",
    int,
    Range(1, 2**31 - 1),
)
TEMPERATURE = number_flags.DEFINE_numbers(
    "temperature", [], "knn: temperatures of the votes.", float, Range(1e-6, LARGEST)
)

NEIGHBOURS, TEMPERATURES = (10, 20, 100, 200), (0.03, 0.07, 0.1, 0.2)


def run(task: Task) -> dict[str, Any]:
    """kNN accuracies of each encoder: a table on the console, and what is written."""
    console, config = task.console, task.found.config
    features = FEATURES.value or config.knn_features
    subject = open_images(task, features)
    bank = len(subject.train.indices)
    ks = K.value or sorted({*NEIGHBOURS, config.knn_k})
    temperatures = TEMPERATURE.value or sorted({*TEMPERATURES, config.knn_temperature})
    if ks[-1] > bank:
        cut = ", ".join(str(k) for k in ks if k > bank)
        console.line(f"k={cut} is cut to {bank}, the number of training images")
        ks = sorted({min(k, bank) for k in ks})
    results: list[dict[str, Any]] = []
    rows = []
    for name, found in task.encoders.items():
        encode = subject.encoder(found, features)
        queries, truth = subject.extract(subject.test, encode, task.report)
        nearest, classes = knn.Search(queries, ks[-1], subject.mesh), []
        for some, named in subject.stream(subject.train, encode, task.report):
            nearest.add(some)
            classes.append(named)
        cosines, places = nearest.result()
        grid = knn.votes(cosines, np.concatenate(classes)[places], ks, temperatures)
        scores = {at: float(np.mean(voted == truth)) for at, voted in grid.items()}
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
