"""Times a search in a million features in a file beside scikit-learn's brute force.

    python -m benchmarks.search_million             # a million of 512 numbers, 2 GB of disk
    python -m benchmarks.search_million --dim=2048  # 8 GB; scikit-learn would need 16 of memory
    python -m benchmarks.search_million --dim=2048 --rows=200000  # the most that both can do

Printed are time, memory and agreement on the nearest of 100 queries. Each search is a process of
its own and starts from the file. Its memory is how far its peak rises above what it held with
everything imported; its time counts reading, and here also compiling. Queries are rows of the
file, a little moved.
"""

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
from moco_jax.base.console import size, table
from moco_jax.embedding import search
from moco_jax.embedding import table as table_lib

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
PART = flags.DEFINE_enum(
    "part", None, ["ours", "scikit-learn"], "One search, as the script starts it."
)
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
MEMORY = 7e9  # bytes that a search may take; scikit-learn's takes twice those of the features


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


def search_theirs() -> np.ndarray:
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
    import sklearn.neighbors  # noqa: F401

    before, began = machine.peak(), time.perf_counter()
    rows = search_ours() if PART.value == "ours" else search_theirs()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "bytes": machine.peak() - before, "rows": rows.tolist()}))


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


def main(argv: list[str]) -> None:
    """Make the file, search, and print the table."""
    if PART.value:
        part()
        return
    features = 4 * ROWS.value * DIM.value
    names = ["ours"] + (["scikit-learn"] if 2 * features < MEMORY else [])
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
        file = os.path.join(folder, f"features.{FORMAT.value}")
        before, began = machine.peak(), time.perf_counter()
        make(file)
        print(machine.describe())
        print(
            f"{ROWS.value:,} x {DIM.value:,} features, {size(os.path.getsize(file))} as"
            f" {FORMAT.value}, written in {time.perf_counter() - began:.0f} s with"
            f" {size(machine.peak() - before)} of memory; {QUERIES.value} queries, k {K.value}"
        )
        runs = [{name: started(name, file) for name in names} for _ in range(TIMES.value)]
    seconds = {name: float(np.median([run[name]["seconds"] for run in runs])) for name in names}
    memory = {name: max(run[name]["bytes"] for run in runs) for name in names}
    print(
        table(
            ["search", "s", "memory", "time, scikit-learn's / it", "memory, scikit-learn's / it"],
            [
                [name, f"{seconds[name]:.1f}", size(memory[name])]
                + (
                    [
                        f"{seconds[names[1]] / seconds[name]:.2f}",
                        f"{memory[names[1]] / memory[name]:.1f}",
                    ]
                    if names[1:]
                    else ["", ""]
                )
                for name in names
            ],
        )
    )
    if names[1:]:
        one, two = (np.asarray(runs[0][name]["rows"]) for name in names)
        print(f"the same neighbours in the same order: {np.mean(one == two):.2%}")
    else:
        print(f"scikit-learn is left out: it would take {size(2 * features)} of memory")


if __name__ == "__main__":
    app.run(main)
