"""Runs of a comparison, a row each and several seeds a row: checked, trained, and summed up."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.data.configured import open_images
from moco_jax.data.sources import Source, fingerprint
from moco_jax.evaluation.classes import match_sources
from moco_jax.evaluation.held_out import choose
from moco_jax.method.configured import method_of
from moco_jax.monitoring import run_log
from moco_jax.training import checks, loop
from moco_jax.workdir import integrity, recipe_check

Row = dict[str, Any]

# Settings by which images, and so their labels, differ from one row to another.
OF_IMAGES = ("dataset", "data_dir", "split", "eval_split")
# Operational settings that decide how a run is scored, or how long it is.
OF_SCORES = (
    "eval_split",
    "knn_k",
    "knn_temperature",
    "knn_features",
    "knn_examples",
    "stop_when",
)
OF_STOPPING = ("patience", "monitor_every")  # the same, where runs may end by their scores
WITH_LABELS = ("knn", "probe")
WITHOUT_LABELS = ("effective_rank", "lidar", "alignment", "uniformity", "spectrum_decay")


def row_config(base: ConfigDict, row: Row, seed: int) -> ConfigDict:
    """Make the settings of one run of `row`."""
    config = base.copy_and_resolve_references()
    config.update(dict(row["settings"]))
    config.seed = seed
    return config


def called(row: Row) -> str:
    """Name `row` for a person."""
    parts = ", ".join(str(row[name]) for name in ("line", "x") if row[name] != "")
    return f"{row['table']}: {parts}" if parts else row["table"]


def folder_name(row: Row, seed: int) -> str:
    """Return the name of the folder of one run of `row`."""
    words = f"{row['table']} {row['line']} {row['x']} seed {seed}"
    return re.sub(r"[^\w.]+", "_", words)


def shared_run(base: ConfigDict, rows: list[Row], row: Row) -> Row:
    """Return the first of `rows` that has the settings of `row`: one run serves both."""
    wanted = row_config(base, row, 0).to_dict()
    return next(other for other in rows if row_config(base, other, 0).to_dict() == wanted)


def check(base: ConfigDict, rows: Sequence[Row], seeds: Sequence[int], place: epath.Path) -> None:
    """Refuse, before the first run, what could not run, or would have no score at its end.

    Args:
        base: the settings that all rows share.
        rows: what is to be run.
        seeds: of each.
        place: the folder of all runs.

    Raises:
        UserError: a setting or the images do not do, or a folder has a run of other settings.
    """
    opened: dict[tuple[Any, ...], Source] = {}
    for row in rows:
        config = row_config(base, row, seeds[-1])
        checks.check_values(config)
        _require_last_score(config)
        images = tuple(config[name] for name in OF_IMAGES)
        if images not in opened:
            opened[images] = open_images(config, config.split, str(place / "index"))
            # One recipe's seeds have the same measure anyway; methods are compared by accuracy.
            if len(rows) > 1:
                _require_labels(config, opened[images], str(place / "index"))
        for seed in seeds:
            folder = place / folder_name(row, seed)
            _require_same(folder, row_config(base, row, seed), opened[images])


def _require_last_score(config: ConfigDict) -> None:
    if not config.monitor_every:
        raise UserError(
            "monitor_every=0 gives runs no score, by which they are compared; try monitor_every="
            f"{config.epochs}"
        )
    if config.stop_at_step:
        raise UserError(
            f"stop_at_step={config.stop_at_step} ends runs before their last score, by which they "
            "are compared; use stop_at_step=0, and epochs for shorter runs"
        )


def _require_labels(config: ConfigDict, source: Source, index_dir: str) -> None:
    """Refuse images `source` of which the runs could give themselves no kNN score."""
    queries = open_images(config, config.eval_split, index_dir) if config.eval_split else None
    bank, chosen = choose(source, queries, config.knn_examples, config.seed)
    matched = match_sources(source, bank, source if queries is None else queries, chosen)
    if matched is None or len(np.unique(matched.train[matched.train >= 0])) < 2:
        what = "no labels" if matched is None else "labels of one class alone"
        raise UserError(
            f"dataset={config.dataset!r} (split {config.split!r}) has {what}, and rows are "
            "compared by their kNN accuracy; give images of two classes or more (docs/data.md), or "
            "repeat one recipe, which needs no labels: --config=RECIPE --seeds=3"
        )


def _require_same(folder: epath.Path, config: ConfigDict, source: Source) -> None:
    """Refuse a run in `folder` that had other settings: its score would stand for these.

    One that is finished must have been scored in the same way, and trained on the images `source`.
    """
    if not (folder / "config.json").exists():
        return
    before = recipe_check.read_config(folder / "config.json")
    found = config_lib.recipe_differences(before, config.to_dict())
    if result_of(folder) is not None:
        names = OF_SCORES if config.stop_when == "never" else (*OF_SCORES, *OF_STOPPING)
        old = {name: before.get(name, config_lib.OPERATIONAL[name]) for name in names}
        found |= {n: (old[n], config[n]) for n in names if old[n] != config[n]}
        found |= _other_images(folder, source)
    if found:
        listed = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in found.items())
        raise UserError(
            f"{folder} holds a run of other settings ({listed}); give another --workdir, or move "
            "that folder away"
        )


def _other_images(folder: epath.Path, source: Source) -> dict[str, tuple[str, str]]:
    """Compare the images of the last checkpoint in `folder`, if it tells them, with `source`."""
    for step in integrity.steps(folder)[:1]:
        saved = integrity.about(folder, step).get(recipe_check.IMAGES)
        what = fingerprint.difference(saved, fingerprint.of(source)) if saved else ""
        old, _, new = what.partition(" -> ")
        if what:
            return {"images": (old, new) if new else ("those of before", what)}
    return {}


def result_of(folder: epath.Path) -> dict[str, float] | None:
    """Read the scores of a finished run; None where it is not finished."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def scores(folder: epath.Path) -> dict[str, float]:
    """Return the numbers of the last score, and top-1 and loss over the last tenth of records.

    Those of the score are kNN and the probe's accuracy where images have labels, and what needs
    none: the effective rank, and with `signals` those of drawn views.

    Raises:
        UserError: the run gave itself no score.
    """
    found = run_log.records(folder)
    scored = [r for r in found if "feature_spread" in r and "event" not in r]
    last = scored[-1] if scored else {}
    last = {name: last[name] for name in (*WITH_LABELS, *WITHOUT_LABELS) if name in last}
    if not last:
        raise UserError(
            f"{folder} has no score in its records; python -m moco_jax.report {folder} shows "
            "what became of the run"
        )
    steps = [r for r in found if "loss" in r]
    latest = steps[-max(len(steps) // 10, 1) :]
    mean = {name: float(np.mean([r[name] for r in latest])) for name in ("top1", "loss")}
    return last | mean


def run_row(base: ConfigDict, row: Row, seed: int, folder: epath.Path) -> int:
    """Train one run of `row` in `folder`, and keep its scores there.

    Returns:
        The number of the signal that stopped it, or 0.
    """
    stopped = loop.train(row_config(base, row, seed), str(folder), set())
    if not stopped:
        files.write(folder / "result.json", (json.dumps(scores(folder)) + "\n").encode())
    return stopped


def summary(
    base: ConfigDict, rows: list[Row], place: epath.Path, seeds: Sequence[int]
) -> list[Row]:
    """Summarise every row that has results over its seeds.

    Returns:
        for each row its names, the number of its seeds, `mean`, `deviation` (of a sample; None for
        one seed) and `range` (least and most) of each score, the `runs` (seed and scores of each),
        and the loss of chance.
    """
    found = []
    for row in rows:
        ran = shared_run(base, rows, row)
        results = {seed: result_of(place / folder_name(ran, seed)) for seed in seeds}
        done = {seed: result for seed, result in results.items() if result is not None}
        if not done:
            continue
        config = row_config(base, row, 0)
        found.append(
            {name: row[name] for name in ("table", "line", "x")}
            | {"seeds": len(done)}
            | _statistics(list(done.values()))
            | {"runs": [{"seed": seed, **result} for seed, result in done.items()]}
            | {"chance": method_of(config).chance_level(config.batch_size)}
        )
    return found


def _statistics(runs: Sequence[dict[str, float]]) -> Row:
    """Compute mean, deviation and range of each score that all of `runs` have."""
    names = [name for name in runs[0] if all(name in run for run in runs)]
    values = {name: np.asarray([run[name] for run in runs]) for name in names}
    several = len(runs) > 1
    return {
        "mean": {name: float(v.mean()) for name, v in values.items()},
        "deviation": {n: float(v.std(ddof=1)) if several else None for n, v in values.items()},
        "range": {name: [float(v.min()), float(v.max())] for name, v in values.items()},
    }
