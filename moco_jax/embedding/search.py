"""Searches a features file, read in blocks, for the nearest images of some queries by cosine."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.text import from_line, to_line
from moco_jax.base.threads import in_parts
from moco_jax.data import labelled_views
from moco_jax.data.sources import Source, open_source
from moco_jax.data.sources.conversion import MAX_PIXELS
from moco_jax.data.sources.folder import FilesSource
from moco_jax.data.sources.pixels import Decoding
from moco_jax.data.views import recipes
from moco_jax.embedding import columns
from moco_jax.embedding.columns import plain
from moco_jax.embedding.encode import Damaged, Embedder
from moco_jax.embedding.table import Table
from moco_jax.evaluation import knn
from moco_jax.inference import trained_encoder

# Facts on the encoder that tables of older versions lack, and their values then.
OLDER = {"background": -1, "max_pixels": MAX_PIXELS}
Report = Callable[[int], None]
# Lengths are sums of squares in float32: a row beyond this power of two, up or down, is first
# scaled nearer to 1.
RANGE = 40


class Nearest(NamedTuple):
    """The nearest rows of M queries.

    Attributes:
        cosines: float32 `[M, k]`, descending.
        rows: int64 `[M, k]`; of equal cosines the smaller row first.
        left_out: how many rows of the table were not compared, as a number in them is not
            finite.
    """

    cosines: np.ndarray
    rows: np.ndarray
    left_out: int


def find(table: Table, words: Sequence[str]) -> np.ndarray:
    """Find the row int64 `[n]` of each word in `table`; -1 for none.

    A word is a name there, or the path of the file that it names.
    """
    root = table.facts["images"]["root"]
    wanted: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        path = os.path.abspath(word)
        names = {word, path, os.path.relpath(path, root)} if root else {word}
        # Names are spelt as a table has them, or as a person has read them there.
        for name in {word, *map(to_line, names)}:
            wanted.setdefault(name, []).append(place)
    rows, first = np.full(len(words), -1, np.int64), 0
    for block in table.blocks("names"):
        for name, places in wanted.items():
            for match in np.flatnonzero(block == name)[:1]:
                rows[[p for p in places if rows[p] < 0]] = first + match
        first += len(block)
    return rows


def comparable(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Select the rows of `features` float32 `[n, D]` that are finite and can be compared.

    Returns:
        float32 `[m, D]`, very long and very short rows scaled by a power of two, which changes
        no cosine; bool `[n]`, false where a number is not finite.
    """
    peaks = np.empty(len(features), features.dtype)

    def measure(some: slice) -> None:
        peaks[some] = np.maximum(features[some].max(1), -features[some].min(1))

    in_parts(measure, len(features))
    finite = np.isfinite(peaks)
    if not finite.all():
        features, peaks = features[finite], peaks[finite]
    _, powers = np.frexp(peaks)
    odd = (np.abs(powers) > RANGE) & (peaks > 0)
    if odd.any():
        features = features.copy()
        features[odd] = np.ldexp(features[odd], -powers[odd, None])
    return features, finite


def _read_ahead(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield `blocks`, each while a thread reads the next."""
    with ThreadPoolExecutor(1, "read") as reader:
        waiting = reader.submit(next, blocks, None)
        while (block := waiting.result()) is not None:
            waiting = reader.submit(next, blocks, None)
            yield block


def nearest(table: Table, queries: np.ndarray, own: np.ndarray, k: int, report: Report) -> Nearest:
    """Find the k rows of `table` nearest by cosine to each of `queries` float32 `[M, D]`.

    A query's own row is left out. All features pass by, so that what was peeked at of them has
    been verified after this.

    Args:
        table: the features; rows with a number that is not finite are nobody's neighbours, and
            counted.
        queries: finite, of any length.
        own: int `[M]`, the row that a query itself is; -1 where it is none.
        k: how many; all others where there are fewer.
        report: called with how many rows have been compared.

    Raises:
        UserError: no row is left to compare with, or the table is damaged.
    """
    among = bool((own >= 0).any())
    queries, _ = comparable(queries)
    # The block is no larger than the table: one long row needs no memory for thousands.
    block_of = min(columns.at_once(4 * table.width), knn.BANK, table.number)
    search = knn.Search(queries, min(k + among, table.number), bank_block=block_of)
    done, odd = 0, [np.zeros(0, np.int64)]
    for block in _read_ahead(table.blocks("features")):
        some, finite = comparable(block)
        search.add(some)
        odd.append(done + np.flatnonzero(~finite))
        done += len(block)
        report(done)
    left_out = np.concatenate(odd)
    others = table.number - len(left_out) - among
    if others < 1:
        raise UserError(
            f"of {table.number:,} rows {len(left_out):,} are not finite, and none is left to"
            " compare with"
        )
    cosines, rows = search.result()
    # Rows are counted in the order of `add`: each row that was left out moves those behind it.
    rows = rows + np.searchsorted(left_out - np.arange(len(left_out)), rows, side="right")
    # Equal images may push a query's own row out of the k + 1; then the last goes.
    last = np.argsort(rows == own[:, None], axis=1, kind="stable")[:, : min(k, others)]
    return Nearest(
        np.take_along_axis(cosines, last, 1),
        np.take_along_axis(rows, last, 1).astype(np.int64),
        len(left_out),
    )


def same_encoder(table: Table, embedder: Embedder, place: str) -> None:
    """Refuse an encoder in `place` that is not the one which made `table`."""
    made = OLDER | table.facts["encoder"]
    facts = embedder.facts(place, made["which"])
    odd = [key for key in facts if key not in ("place", "step") and facts[key] != made.get(key)]
    if odd:
        key = odd[0]
        what = "its weights differ"
        if key != "weights_sha256":
            what = f"{key}={facts[key]!r}, and they were made with {made.get(key)!r}"
        raise UserError(
            f"the encoder in {place} is not the one that made these features: {what}; make them"
            " anew with it, or give the place of the other as --workdir"
        )


def encoded(embedder: Embedder, paths: Sequence[str]) -> np.ndarray:
    """Encode image files to features float32 `[n, D]`; raises UserError where one is damaged."""
    source = FilesSource(paths, Decoding.of(embedder.trained.config))
    damaged = Damaged(source)
    blocks = []
    for some, indices in embedder.stream(source):
        damaged.before(indices)
        blocks.append(some)
    damaged.rest()
    if damaged.first:
        raise UserError(f"the query {damaged.first} cannot be decoded")
    return np.concatenate(blocks)


def pictures(
    made: Mapping[str, Any], source: Source, indices: np.ndarray
) -> list[np.ndarray | None]:
    """Show images `indices` int `[n]` of `source` as the encoder with these facts sees them.

    uint8 `[S, S, C]` each; None where one cannot be decoded.
    """
    recipe = recipes.create(made["augment"], made["image_size"], None, made["channels"])
    batches = labelled_views.evaluation_batches(source, recipe, indices[:, None], 0)
    return [batch["image"][0] if batch["ok"][0] else None for batch in batches]


def pictures_of_rows(table: Table, rows: np.ndarray) -> list[np.ndarray | None]:
    """Show the images of `rows` int `[n]` of `table`, as `pictures` does.

    Raises:
        UserError: the data set is gone, or another.
    """
    place, made = table.facts["images"], table.facts["encoder"]
    names = table.take("names", rows).tolist()
    if place["root"]:
        files = [os.path.join(place["root"], from_line(name)) for name in names]
        return pictures(made, FilesSource(files, Decoding.of(made)), np.arange(len(rows)))
    source = open_source(
        place["dataset"], place["split"], place["data_dir"], None, Decoding.of(made)
    )
    if "indices" not in table.columns:
        raise UserError("the features file does not say which images these are")
    indices = table.take("indices", rows)
    if len(source) != place["number"] or plain(source.names(indices)) != names:
        raise UserError(
            f"data_dir={place['data_dir']} no longer holds what these features were made of"
        )
    return pictures(made, source, indices)


def load_encoder(table: Table, place: str, mesh: Any) -> Embedder:
    """Load the encoder that made `table` from `place`; raises UserError where it is another."""
    made = table.facts["encoder"]
    trained = trained_encoder.load(place, made["which"], made["step"])
    embedder = Embedder(trained, made["features"], mesh)
    same_encoder(table, embedder, place)
    return embedder
