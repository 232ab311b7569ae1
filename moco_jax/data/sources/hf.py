"""Hugging Face's data sets on this machine: saved by `save_to_disk`, or the hub's Parquet folders.

A saved set is Arrow files (`arrow_files.py`). Nothing is asked of the hub.
"""

import json
import os
import re
from typing import Any

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.storage import is_remote
from moco_jax.base.text import printable
from moco_jax.data.sources import arrow_files, image_columns, shards, spans, store, tables
from moco_jax.data.sources.labels import listed
from moco_jax.data.sources.parquet import ParquetSource
from moco_jax.data.sources.pixels import RGB, Decoding
from moco_jax.data.sources.spans import SpanRecords
from moco_jax.data.sources.tables import TableSource, pyarrow

STATE, PARTS = "state.json", "dataset_dict.json"  # beside one saved set; beside its parts
_NUMBERED = re.compile(r"(.+?)-\d+-of-\d+(?:-\w+)?")  # train-00000-of-00002, and with a digest


def open_saved(
    data_dir: str,
    dataset: str = "hf",
    split: str = "train",
    index_dir: str | None = None,
    decoding: Decoding = RGB,
) -> TableSource:
    """Open the part `split` of the set in the folder `data_dir`.

    Args:
        data_dir: what `save_to_disk` was given, or a folder of the hub's Parquet files.
        dataset: the setting; behind a colon the columns of images and classes.
        split: the part.
        index_dir: where an index of Parquet files is kept.
        decoding: how bytes become pixels.

    Raises:
        UserError: it is no such folder, it has no such part, or the part no images.
    """
    pyarrow(f"dataset={dataset!r}")
    shown = f"data_dir={printable(data_dir)}" if data_dir else "data_dir=''"
    if not data_dir or not store.is_folder(data_dir):
        raise UserError(
            f"{shown} is no folder; give one that Dataset.save_to_disk wrote, or that holds the"
            " Parquet files of a set of the hub"
        )
    if store.is_file(os.path.join(data_dir, PARTS)):
        known = _json(os.path.join(data_dir, PARTS)).get("splits")
        parts = {str(name): os.path.join(data_dir, str(name)) for name in known or ()}
        return _saved(_part(parts, split, shown), dataset, decoding)
    state = os.path.join(data_dir, STATE)
    if store.is_file(state):
        parts = {str(_json(state).get("_split") or "train"): data_dir}
        return _saved(_part(parts, split, shown), dataset, decoding)
    paths = _part(_parquet_parts(data_dir, shown), split, shown)
    folders = sorted({os.path.dirname(path) for path in paths})
    if len(folders) > 1:
        raise UserError(
            f"{shown} holds {split} in several folders, {listed(folders)}, each a set of its own;"
            f" give one: data_dir={printable(folders[0])}"
        )
    return ParquetSource(data_dir, dataset, index_dir, decoding, paths)


def _json(path: str) -> dict[str, Any]:
    """Read the facts in the file `path`.

    Raises:
        UserError: it is damaged.
    """
    try:
        facts = json.loads(store.read(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{printable(path)} is damaged ({error}); save the set again") from error
    if not isinstance(facts, dict):
        raise UserError(f"{printable(path)} is damaged: it holds no facts; save the set again")
    return facts


def _part(parts: dict[str, Any], split: str, shown: str) -> Any:
    """Return the one of `parts` that `split` names.

    Raises:
        UserError: there is no such part.
    """
    if split not in parts:
        there = listed(sorted(parts)) if parts else "none"
        raise UserError(f"{shown} has no part split={split!r}; there is {there}")
    return parts[split]


def _parquet_parts(data_dir: str, shown: str) -> dict[str, list[str]]:
    """Return the Parquet files below `data_dir` by part: as names say it, or the folder's name.

    Raises:
        UserError: there is none, or a part lacks a file.
    """
    found: dict[str, list[str]] = {}
    by_folder: dict[str, list[str]] = {}
    for path in sorted(store.walk(data_dir)):
        folder, name = os.path.split(path)
        stem, ending = os.path.splitext(name)
        if ending.lower() != ".parquet":
            continue
        numbered = _NUMBERED.fullmatch(stem)
        part = numbered[1] if numbered else stem
        if stem.isdigit():  # default/train/0000.parquet
            part = os.path.basename(folder or data_dir.rstrip("/"))
        found.setdefault(part, []).append(os.path.join(data_dir, path))
        by_folder.setdefault(folder, []).append(name)
    if not found:
        raise UserError(
            f"{shown} holds neither {STATE} nor {PARTS}, as Dataset.save_to_disk writes them, nor a"
            " Parquet file; give the folder of a saved set, or of Parquet files"
        )
    for folder, called in by_folder.items():
        shards.complete(os.path.join(data_dir, folder), called)
    return found


def _saved(folder: str, dataset: str, decoding: Decoding) -> TableSource:
    """Open the one saved set in `folder`."""
    shown = f"data_dir={printable(folder)}"
    if is_remote(folder):
        raise UserError(
            f"{shown}: a saved set is read from a disk of this machine; copy it there, or write it"
            " as Parquet, which dataset='parquet' reads in buckets too"
        )
    state = _json(os.path.join(folder, STATE))
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(
            f"{shown} was saved as a selection of rows; save it again after flatten_indices()"
        )
    try:
        paths = [os.path.join(folder, each["filename"]) for each in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{printable(os.path.join(folder, STATE))} names no files; save the set again"
        ) from error
    if not paths:
        raise UserError(f"{shown} holds no image: the set that was saved is empty")
    wanted = image_columns.choose(arrow_files.Mapped(paths[0]).schema, dataset, shown)
    found = [arrow_files.read(arrow_files.Mapped(path), wanted) for path in paths]
    counts = [len(places) for places, _ in found]
    files = np.repeat(np.arange(len(paths), dtype=np.int32), counts)
    arrays = spans.columns(np.concatenate([places for places, _ in found]))
    classes = tables.joined([some for _, some in found])
    return TableSource(SpanRecords(paths, files, arrays), wanted, classes, shown, decoding)
