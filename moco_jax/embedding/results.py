"""Presents what a search found: a table for each query, and a picture of all."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from moco_jax.base import console, figures
from moco_jax.base.text import printable
from moco_jax.data.sources.folder import FilesSource
from moco_jax.data.sources.labels import called
from moco_jax.data.sources.pixels import Decoding
from moco_jax.embedding import search
from moco_jax.embedding.table import Table

DRAWN = 20  # queries that a picture shows at most


class Neighbours(NamedTuple):
    """The nearest of M queries, with names and labels.

    Attributes:
        words: what each query was called.
        own: int64 `[M]`, the row that a query itself is, -1 where it is a file that was encoded
            now.
        cosines: float32 `[M, k]`, descending.
        rows: int64 `[M, k]`.
        names: str `[M, k]`.
        labels: int64 `[M, k]`, or None.
    """

    words: Sequence[str]
    own: np.ndarray
    cosines: np.ndarray
    rows: np.ndarray
    names: np.ndarray
    labels: np.ndarray | None


def named(
    table: Table, words: Sequence[str], own: np.ndarray, cosines: np.ndarray, rows: np.ndarray
) -> Neighbours:
    """Add the names and labels in `table` to these neighbours."""
    columns = [
        table.take(column, rows.ravel()).reshape(rows.shape) if column in table.columns else None
        for column in ("names", "labels")
    ]
    return Neighbours(words, own, cosines, rows, *columns)  # type: ignore[arg-type]


def encoder_words(made: Mapping[str, Any]) -> str:
    """Say in a few words which encoder made features."""
    words = (
        f"{made['arch']}, {made['which']}, step {made['step']} of {made['place']}, features:"
        f" {made['features']}"
    )
    return printable(words)


def tables(table: Table, neighbours: Neighbours) -> str:
    """Format a table for each query: rank, cosine, name, and class where it is known."""
    classes = table.facts["images"]["classes"]
    blocks = []
    for number, (word, own) in enumerate(
        zip(neighbours.words, neighbours.own.tolist(), strict=True)
    ):
        how = f"row {own:,}"
        if own < 0:
            how = f"encoded by {encoder_words(table.facts['encoder'])}"
        columns = [
            [f"{rank}" for rank in range(1, neighbours.rows.shape[1] + 1)],
            [f"{cosine:.4f}" for cosine in neighbours.cosines[number]],
            [printable(name) for name in neighbours.names[number].tolist()],
        ]
        if neighbours.labels is not None:
            labels = neighbours.labels[number].tolist()
            columns.append([called(classes, label) or "-" for label in labels])
        header = ["", "cosine", "image", "class"][: len(columns)]
        lines = console.table(header, list(zip(*columns, strict=True)))
        blocks.append(f"nearest to {printable(word)} ({how})\n{lines}")
    return "\n\n".join(blocks)


def draw(path: epath.Path, table: Table, neighbours: Neighbours) -> None:
    """Draw a picture of a row for each query, at most `DRAWN`, and write it to `path`.

    Raises:
        UserError: the images are gone, or others.
    """
    few = slice(0, DRAWN)
    own, made = neighbours.own[few], table.facts["encoder"]
    inside, outside = np.flatnonzero(own >= 0), np.flatnonzero(own < 0)
    rows = np.concatenate([own[inside], neighbours.rows[few].ravel()])
    shown = search.pictures_of_rows(table, rows)
    files = FilesSource([neighbours.words[n] for n in outside.tolist()], Decoding.of(made))
    encoded = search.pictures(made, files, np.arange(len(files)))
    of_query = dict(zip(outside.tolist(), encoded, strict=True))
    of_query |= dict(zip(inside.tolist(), shown[: len(inside)], strict=True))
    others = iter(shown[len(inside) :])
    figures.ranked(
        path,
        [(neighbours.words[n], of_query[n]) for n in range(len(own))],
        [
            [
                (f"{cosine:.3f}", name, next(others))
                for cosine, name in zip(
                    neighbours.cosines[n], neighbours.names[n].tolist(), strict=True
                )
            ]
            for n in range(len(own))
        ],
    )
