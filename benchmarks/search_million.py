"""Times a search in a million features in a file beside faiss and scikit-learn's brute force.

    python -m benchmarks.search_million             # a million of 512 numbers, 2 GB of disk
    python -m benchmarks.search_million --dim=2048  # 8 GB; the others would need 8 and 16 of memory
    python -m benchmarks.search_million --dim=2048 --rows=200000  # the most that all can do

Printed are time, memory and agreement on the nearest of 100 queries. Each search is a process of
its own and starts from the file. Its memory is how far its peak rises above what it held with
everything imported; its time counts reading, and here also compiling. Queries are rows of the
file, a little moved.

faiss (`pip install faiss-cpu`; left out where it is missing) searches with its exact index,
IndexFlatIP, on as many threads. It is measured twice, with the products of its own that it takes
for few queries, and with those of BLAS: which are faster depends on the number of cores.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

from benchmarks import machine
from moco_jax.base import packages
from moco_jax.base.console import size, table
from moco_jax.embedding import search
from moco_jax.embedding import table as table_lib

PARTS = ["ours", "faiss", "faiss, BLAS", "scikit-learn"]
ROWS = flags.DEFINE_integer("rows", 10**6, "Features in the file.", 1)
DIM = flags.DEFINE_integer("dim", 512, "Numbers in each.", 1)
QUERIES = flags.DEFINE_integer("queries", 100, "How many are searched for at once.", 1)
K = flags.DEFINE_integer("k", 10, "Nearest of each.", 1)
TIMES = flags.DEFINE_integer(
    "times", 3, "Runs of each, taken in turns; the median time is printed.", 1
)
FOLDER = flags.DEFINE_string(
    "folder", None, "Where the file is made; left out: where temporary files go."
)
FORMAT = flags.DEFINE_enum("format", "npz", ["npz", "parquet"], "Of the file.")
PART = flags.DEFINE_enum("part", None, PARTS, "One search, as the script starts it.")
FILE = flags.DEFINE_string("file", "", "With --part: the features.")
# The facts that a table holds on encoder and images, of which there are none here.
FACTS = {
    "encoder": {
        "place": "",
        "which": "query",
        "step": 0,
        "arch": "",
        "features": "backbone",
        "augment": "linear",
        "image_size": 224,
        "channels": 3,
    },
    "images": {
        "dataset": "folder",
        "split": "",
        "data_dir": "",
        "number": 0,
        "root": "",
        "classes": [],
    },
}
MEMORY = 7e9  # bytes that a search may take
HELD = {"scikit-learn": 2}  # how often a search holds the features; the others of faiss once


def make(path: str) -> None:
    """Write normal features, the same every time."""
    rng = np.random.default_rng(0)
    with table_lib.writing(path, FACTS) as write:
        for first in range(0, ROWS.value, table_lib.BLOCK):
            indices = np.arange(first, min(first + table_lib.BLOCK, ROWS.value))
            features = rng.standard_normal((len(indices), DIM.value), np.float32)
            write(table_lib.Rows(features, [f"{n:08d}.jpg" for n in indices], indices, None))


def queries(features: table_lib.Table) -> np.ndarray:
    """Draw the queries, float32 `[QUERIES, D]`."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, features.number, QUERIES.value)
    noise = rng.standard_normal((QUERIES.value, features.width), np.float32)
    return features.peek("features", rows) + 0.5 * noise


def search_ours() -> np.ndarray:
    """Search with this project: rows int `[QUERIES, K]`."""
    features = table_lib.opened(FILE.value)
    none = np.full(QUERIES.value, -1)
    return search.nearest(features, queries(features), none, K.value, lambda _: None).rows


def search_faiss(few: int) -> np.ndarray:
    """Search with faiss's exact index: rows int `[QUERIES, K]`.

    `few`: the numbers in queries up to which faiss takes products of its own.
    """
    import faiss

    faiss.cvar.distance_compute_blas_threshold = few
    opened = table_lib.opened(FILE.value)
    index = faiss.IndexFlatIP(opened.width)
    for block in opened.blocks("features"):
        faiss.normalize_L2(block)
        index.add(block)
    asked = queries(opened)
    faiss.normalize_L2(asked)
    return index.search(asked, K.value)[1]


def search_scikit_learn() -> np.ndarray:
    """Search with scikit-learn: rows int `[QUERIES, K]`."""
    from sklearn.neighbors import NearestNeighbors

    opened, first = table_lib.opened(FILE.value), 0
    features = np.empty((opened.number, opened.width), np.float32)
    for block in opened.blocks("features"):
        features[first : first + len(block)] = block
        first += len(block)
    brute = NearestNeighbors(n_neighbors=K.value, algorithm="brute", metric="cosine")
    return brute.fit(features).kneighbors(queries(opened), return_distance=False)


def part() -> None:
    """Run one search, and print its seconds, its bytes and its rows as JSON."""
    searches = {"ours": search_ours, "scikit-learn": search_scikit_learn}
    if PART.value in searches:
        import sklearn.neighbors  # noqa: F401

        run = searches[PART.value]
    else:
        import faiss

        own = faiss.cvar.distance_compute_blas_threshold
        run = functools.partial(search_faiss, own if PART.value == "faiss" else 0)
    before, began, cpu = machine.peak(), time.perf_counter(), time.process_time()
    rows = run()
    measured = {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "bytes": machine.peak() - before,
    }
    print(json.dumps(measured | {"rows": rows.tolist()}))


def started(name: str, file: str) -> dict:
    """Run the search `name` in a process of its own, and return what it printed."""
    given = [f"--{flag.name}={flag.value}" for flag in (QUERIES, K)]
    command = [
        sys.executable,
        "-m",
        "benchmarks.search_million",
        f"--part={name}",
        f"--file={file}",
        *given,
    ]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def compared(features: int) -> list[str]:
    """Name the searches that can be done here, given the bytes of the features; say what not."""
    names = []
    for name in PARTS:
        held = features * HELD.get(name, 1)
        if name.startswith("faiss") and not packages.is_there("faiss"):
            print(f"{name} is left out: pip install faiss-cpu")
        elif name != "ours" and held > MEMORY:
            print(f"{name} is left out: it would take {size(held)} of memory")
        else:
            names.append(name)
    return names


def show(runs: list[dict[str, dict]]) -> None:
    """Print the table of all runs, each with what every search measured."""
    names = list(runs[0])

    def median(what: str, name: str, over: str = "") -> float:
        return float(np.median([r[name][what] / (r[over][what] if over else 1) for r in runs]))

    print(
        table(
            ["search", "s", "CPU s", "memory", "s / ours", "CPU s / ours", "memory / ours"],
            [
                [
                    name,
                    *(f"{median(what, name):.1f}" for what in ("seconds", "cpu")),
                    size(median("bytes", name)),
                    *(f"{median(what, name, 'ours'):.2f}" for what in ("seconds", "cpu", "bytes")),
                ]
                for name in names
            ],
        )
    )
    ours = np.asarray(runs[0]["ours"]["rows"])
    for name in names[1:]:
        same = np.mean(ours == np.asarray(runs[0][name]["rows"]))
        print(f"the same neighbours in the same order as {name}: {same:.2%}")


def main(argv: list[str]) -> None:
    """Make the file, search, and print the table."""
    if PART.value:
        part()
        return
    print(machine.describe())
    names = compared(4 * ROWS.value * DIM.value)
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
        file = os.path.join(folder, f"features.{FORMAT.value}")
        before, began = machine.peak(), time.perf_counter()
        make(file)
        print(
            f"{ROWS.value:,} x {DIM.value:,} features, {size(os.path.getsize(file))} as"
            f" {FORMAT.value}, written in {time.perf_counter() - began:.0f} s with"
            f" {size(machine.peak() - before)} of memory; {QUERIES.value} queries, k {K.value}"
        )
        # In turns, so that what else the machine does meets all alike; ratios are within a turn.
        runs = [{name: started(name, file) for name in names} for _ in range(TIMES.value)]
    show(runs)


if __name__ == "__main__":
    app.run(main)
