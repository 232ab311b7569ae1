"""The nearest images of some queries, by cosine, in a features file that is read in blocks."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moco_jax import trained
from moco_jax.data import pipeline, recipes
from moco_jax.data.sources import Source, open_source
from moco_jax.data.sources.decoding import MAX_PIXELS
from moco_jax.data.sources.folder import FilesSource
from moco_jax.data.sources.pixels import Decoding
from moco_jax.embedding.encode import Damaged, Embedder
from moco_jax.embedding.table import Table, plain
from moco_jax.errors import UserError
from moco_jax.evaluation import knn

# What tables of older versions do not say of their encoder.
OLDER = {"background": -1, "max_pixels": MAX_PIXELS}
Report = Callable[[int], None]


def find(table: Table, words: Sequence[str]) -> np.ndarray:
    """The row int64 `[n]` of each word in `table`: a name there, or the path of the file that it names; -1 for none."""
    root = table.facts["images"]["root"]
    wanted: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        path = os.path.abspath(word)
        names = {word, path, os.path.relpath(path, root)} if root else {word}
        for name in names:
            wanted.setdefault(name, []).append(place)
    rows, first = np.full(len(words), -1, np.int64), 0
    for block in table.blocks("names"):
        for name, places in wanted.items():
            for found in np.flatnonzero(block == name)[:1]:
                rows[[p for p in places if rows[p] < 0]] = first + found
        first += len(block)
    return rows


def nearest(
    table: Table, queries: np.ndarray, own: np.ndarray, k: int, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `table` nearest by cosine to each of `queries` float32 `[M, D]`, a query's own left out.

    Args:
        table: what is searched.
        queries: of any length.
        own: int `[M]`, the row that a query itself is; -1 where it is none.
        k: how many; all others where there are fewer.
        report: told how many rows have been compared.

    Returns:
        cosines float32 `[M, k]`, descending, and rows int64 `[M, k]`; of equal cosines the smaller row first.
    """
    among = bool((own >= 0).any())
    search, done = knn.Search(queries, min(k + among, table.number)), 0
    for block in table.blocks("features"):
        search.add(block)
        done += len(block)
        report(done)
    cosines, rows = search.result()
    # Equal images may push a query's own row out of the k + 1; then the last goes.
    last = np.argsort(rows == own[:, None], axis=1, kind="stable")[
        :, : min(k, table.number - among)
    ]
    return np.take_along_axis(cosines, last, 1), np.take_along_axis(rows, last, 1).astype(np.int64)


def same_encoder(table: Table, embedder: Embedder, place: str) -> None:
    """Refuse an encoder in `place` that is not the one which made `table`."""
    made = OLDER | table.facts["encoder"]
    found = embedder.facts(place, made["which"])
    odd = [key for key in found if key not in ("place", "step") and found[key] != made.get(key)]
    if odd:
        key = odd[0]
        what = "its weights differ"
        if key != "weights_sha256":
            what = f"{key}={found[key]!r}, and they were made with {made.get(key)!r}"
        raise UserError(
            f"the encoder in {place} is not the one that made these features: {what}; make them anew with it, or give "
            "the place of the other as --workdir"
        )


def encoded(embedder: Embedder, paths: Sequence[str]) -> np.ndarray:
    """Features float32 `[n, D]` of image files; UserError where one cannot be decoded."""
    source = FilesSource(paths, Decoding.of(embedder.found.config))
    damaged = Damaged(source)
    found = []
    for some, indices in embedder.stream(source):
        damaged.before(indices)
        found.append(some)
    damaged.rest()
    if damaged.first:
        raise UserError(f"the query {damaged.first} cannot be decoded")
    return np.concatenate(found)


def pictures(
    made: Mapping[str, Any], source: Source, indices: np.ndarray
) -> list[np.ndarray | None]:
    """Images `indices` int `[n]` of `source` as the encoder with these facts is shown them.

    uint8 `[S, S, C]` each; None where one cannot be decoded.
    """
    recipe = recipes.create(made["augment"], made["image_size"], None, made["channels"])
    batches = pipeline.evaluation_batches(source, recipe, indices[:, None], 0)
    return [batch["image"][0] if batch["ok"][0] else None for batch in batches]


def pictures_of_rows(table: Table, rows: np.ndarray) -> list[np.ndarray | None]:
    """As `pictures`, of `rows` int `[n]` of `table`; UserError where the data set is gone or another."""
    place, made = table.facts["images"], table.facts["encoder"]
    names = table.take("names", rows).tolist()
    if place["root"]:
        files = [os.path.join(place["root"], name) for name in names]
        return pictures(made, FilesSource(files, Decoding.of(made)), np.arange(len(rows)))
    source = open_source(
        place["dataset"], place["split"], place["data_dir"], None, Decoding.of(made)
    )
    indices = table.take("indices", rows)
    if len(source) != place["number"] or plain(source.names(indices)) != names:
        raise UserError(
            f"data_dir={place['data_dir']} no longer holds what these features were made of"
        )
    return pictures(made, source, indices)


def load_encoder(table: Table, place: str, mesh: Any) -> Embedder:
    """The encoder that made `table`, from `place`; UserError where it is gone or another."""
    made = table.facts["encoder"]
    found = trained.load(place, made["which"], made["step"])
    embedder = Embedder(found, made["features"], mesh)
    same_encoder(table, embedder, place)
    return embedder
