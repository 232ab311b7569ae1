"""Measures memory and time of nearest-neighbour classification at ImageNet's size.

    python -m benchmarks.knn_memory  # 1,281,167 x 128, 50,000 queries: a quarter of an hour
    python -m benchmarks.knn_memory --dim=2048 --bank=81920  # a ResNet-50's pooled features

Times are of two cores; they grow with the bank. Features are made up.
`moco_jax.evaluation.knn.Search` sees the bank in batches as an encoder would hand them over, and
the memory that it takes is printed as the bank passes by. scikit-learn has the whole bank in
memory and answers a few of the same queries, in a process of its own; neighbours, time a query
and memory are compared.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

from benchmarks import machine
from moco_jax.base.console import size, table
from moco_jax.evaluation import knn

BANK = flags.DEFINE_integer("bank", 1_281_167, "Training images.", 1)
QUERIES = flags.DEFINE_integer("queries", 50_000, "Test images.", 1)
DIM = flags.DEFINE_integer("dim", 128, "Numbers in each feature.", 1)
K = flags.DEFINE_integer("k", 200, "Neighbours that are kept.", 1)
COMPARED = flags.DEFINE_integer("compared", 200, "Queries that scikit-learn answers too.", 1)
PART = flags.DEFINE_enum(
    "part", None, ["ours", "scikit-learn"], "One search, as the script starts it."
)
BATCH, CLASSES, TEMPERATURE = 256, 1000, 0.07


def centres() -> np.ndarray:
    """Draw centres, float32 `[1000, D]`: a class's features lie around its centre."""
    return np.random.default_rng(0).standard_normal((CLASSES, DIM.value), np.float32)


def made(number: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `number` features float32 `[m, D]` and classes int `[m]`, a batch at a time."""
    around, rng = centres(), np.random.default_rng(seed)
    for first in range(0, number, BATCH):
        classes = rng.integers(0, CLASSES, min(BATCH, number - first))
        noise = rng.standard_normal((len(classes), DIM.value), np.float32)
        yield around[classes] + 2 * noise, classes


def search_ours() -> dict:
    """Search and vote with `Search`; return what it takes and finds."""
    queries, truth = (np.concatenate(x) for x in zip(*made(QUERIES.value, 2), strict=True))
    search, classes = knn.Search(np.zeros((1, DIM.value), np.float32), 1), []
    search.add(next(made(BATCH, 1))[0])
    search.result()  # so that what JAX holds for any search is not counted
    before, began, cpu = machine.peak(), time.perf_counter(), time.process_time()
    search = knn.Search(queries, K.value)
    passed, reported = 0, 0
    for features, named in made(BANK.value, 1):
        search.add(features)
        classes.append(named)
        passed += len(features)
        if passed >= reported + BANK.value / 8 or passed == BANK.value:
            reported = passed
            seconds = time.perf_counter() - began
            print(
                f"{passed:>9,} rows seen: {size(machine.peak() - before)} of memory,"
                f" {seconds:.0f} s",
                file=sys.stderr,
            )
    cosines, rows = search.result()
    voted = knn.votes(cosines, np.concatenate(classes)[rows], [K.value], [TEMPERATURE])
    accuracy = float(np.mean(voted[K.value, TEMPERATURE] == truth))
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "cpu": time.process_time() - cpu,
        "bytes": machine.peak() - before,
        "accuracy": accuracy,
        "rows": rows[: COMPARED.value].tolist(),
    }


def search_theirs() -> dict:
    """Search for the first queries with scikit-learn; return what it takes and finds."""
    from sklearn.neighbors import NearestNeighbors

    queries = np.concatenate([x for x, _ in made(QUERIES.value, 2)])[: COMPARED.value]
    before = machine.peak()
    bank, first = np.empty((BANK.value, DIM.value), np.float32), 0
    for features, _ in made(BANK.value, 1):
        bank[first : first + len(features)] = features
        first += len(features)
    brute = NearestNeighbors(n_neighbors=K.value, algorithm="brute", metric="cosine").fit(bank)
    began, cpu = time.perf_counter(), time.process_time()
    rows = brute.kneighbors(queries, return_distance=False)
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "bytes": machine.peak() - before,
        "rows": rows.tolist(),
    }


def started(name: str) -> dict:
    """Run the search `name` in a process of its own, and return what it printed."""
    given = [f"--{flag.name}={flag.value}" for flag in (BANK, QUERIES, DIM, K, COMPARED)]
    command = [sys.executable, "-m", "benchmarks.knn_memory", f"--part={name}", *given]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    """Search, compare, and print."""
    if PART.value:
        print(json.dumps(search_ours() if PART.value == "ours" else search_theirs()))
        return
    print(machine.describe())
    whole = 4 * BANK.value * DIM.value
    print(
        f"bank {BANK.value:,} x {DIM.value:,} ({size(whole)}), {QUERIES.value:,} queries, k"
        f" {K.value}"
    )
    names, counts = ["ours", "scikit-learn"], [QUERIES.value, min(COMPARED.value, QUERIES.value)]
    results = [started(name) for name in names]
    print(
        table(
            ["search", "queries", "memory", "of the bank", "s", "CPU s", "queries/s"],
            [
                [
                    name,
                    f"{count:,}",
                    size(r["bytes"]),
                    f"{r['bytes'] / whole:.2f}",
                    f"{r['seconds']:.0f}",
                    f"{r['cpu']:.0f}",
                    f"{count / r['seconds']:.1f}",
                ]
                for name, count, r in zip(names, counts, results, strict=True)
            ],
        )
    )
    ours, theirs = results
    print(f"memory, scikit-learn's / ours: {theirs['bytes'] / ours['bytes']:.1f}")
    same = [len({*a} & {*b}) / len(b) for a, b in zip(ours["rows"], theirs["rows"], strict=True)]
    print(
        f"neighbours that both name: {np.mean(same):.3%}; accuracy of the votes"
        f" {ours['accuracy']:.2%}"
    )


if __name__ == "__main__":
    app.run(main)
