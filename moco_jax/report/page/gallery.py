"""Pictures of the page: view pairs, nearest neighbours, and the map of features."""

from collections.abc import Sequence
from typing import Any

from moco_jax.data.configured import views_in_words
from moco_jax.report.page import images
from moco_jax.report.page.embedding import Embedding
from moco_jax.report.page.renewal import SlowParts
from moco_jax.report.page.run import Run

CLASS_COLOURS = 10
THUMB = 40  # side in pixels of an image in the map's sprite
COLUMNS = 32  # images in a row of the map's sprite
MAP = (600, 440, 14)  # width, height and margin of the map, as the template has them


def view_pairs(pairs: Sequence[tuple[Run, SlowParts]]) -> list[dict[str, Any]]:
    """Return each set of view pairs once, under the names of all runs that draw it."""
    sets: list[dict[str, Any]] = []
    for run, slow in pairs:
        same = [entry for entry in sets if entry["pairs"] == slow.pairs]
        if same:
            same[0]["names"].append(run.name)
        elif slow.pairs:
            drawn = views_in_words(run.config)
            sets.append({"names": [run.name], "drawn": drawn, "pairs": slow.pairs})
    return sets


def neighbours(run: Run, embedding: Embedding) -> dict[str, Any]:
    """Return each query of `run` with its nearest images, and how often classes agree."""
    bank, queries = embedding.bank, embedding.queries
    used = sorted({int(row) for rows in embedding.nearest.values() for row in rows.ravel()})

    def neighbour(query: int, rank: int, row: int) -> dict[str, Any]:
        alt, mark = f"{rank}: {_called(bank, row)}", ""
        if bank.classes is not None and queries.classes is not None:
            ours, asked = bank.classes[row], queries.classes[query]
            if ours and asked:
                mark = "same" if ours == asked else "other"
        return {"row": row, "alt": alt, "mark": mark}

    rows = [
        {
            "picture": images.small(queries.images[query]),
            "alt": _called(queries, query),
            "cells": [
                [neighbour(query, rank, int(row)) for rank, row in enumerate(rows[query], 1)]
                for rows in embedding.nearest.values()
            ],
        }
        for query in range(len(queries.images))
    ]
    about = f"Cosine of the features ({run.config.knn_features})."
    if embedding.agreement:
        shares = [f"{share:.1%} {title}" for title, share in embedding.agreement.items()]
        about += f" Images whose nearest other is of their class: {', '.join(shares)}."
        without = (bank.classes or []).count("")
        if without:
            about += f" {without:,} of {len(bank.images):,} have no label and do not count."
    return {
        "name": run.name,
        "about": about,
        "titles": list(embedding.nearest),
        "rows": rows,
        "count": f"{len(bank.images):,}",
        "classed": bank.classes is not None,
        "bank": {row: images.small(bank.images[row]) for row in used},
    }


def _called(pictures: Any, row: int) -> str:
    name = pictures.names[row]
    of = "" if pictures.classes is None else pictures.classes[row]
    return f"class {of}, {name}" if of else name


def _by_number(name: str) -> tuple[bool, int, str]:
    """Return a key that sorts names that are numbers by value, before others."""
    is_number = name.isdecimal()
    return not is_number, int(name) if is_number else 0, name


def feature_map(number: int, run: Run, embedding: Embedding) -> dict[str, Any]:
    """Return the map of features of `run`, which is the run of this `number` on the page."""
    bank, (width, height, margin) = embedding.bank, MAP
    classes = sorted(set(bank.classes or []), key=_by_number)
    colours = {c: n % CLASS_COLOURS for n, c in enumerate(classes)}
    few = 1 < len(classes) <= 2 * CLASS_COLOURS
    points = [
        {
            "x": round(margin + float(x) * (width - 2 * margin), 1),
            "y": round(margin + float(y) * (height - 2 * margin), 1),
            "colour": colours[bank.classes[row]] if bank.classes else 0,
            "label": _called(bank, row),
        }
        for row, (x, y) in enumerate(embedding.places)
    ]
    about = (
        f"{len(points):,} images by their features after step {embedding.step:,}, as"
        f" {embedding.method}."
    )
    return {
        "name": run.name,
        "key": f"map-{number}",
        "about": about,
        "points": points,
        "side": THUMB,
        "columns": COLUMNS,
        "classes": [c or "no label" for c in classes] if few else [],
        "sprite": images.sprite(bank.images, min(THUMB, bank.images.shape[1]), COLUMNS),
    }


def drawn(run: Run) -> list[dict[str, str]]:
    """Return the picture that a run has drawn itself, where no map can be made."""
    path = run.place / "neighbours.png"
    if not path.exists():
        return []
    return [{"name": run.name, "picture": images.uri(images.picture_file(path), False)}]
