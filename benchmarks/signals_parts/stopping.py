"""Replays the scores of runs: when each would have been told to stop, and what that costs."""

from collections.abc import Sequence

from moco_jax.monitoring import verdict
from moco_jax.report.page.records import Record
from moco_jax.report.page.run import Run

HEADS = ["run", "judged by", "stop at epoch", "kNN there", "kNN at the end", "best kNN"]


def stop_at(run: Run, records: Sequence[Record]) -> int | None:
    """Return the step of the score after which the run is told to stop; None if never."""
    for place, record in enumerate(records):
        if "feature_spread" in record and run.judged(records[: place + 1]).stops:
            return record["step"]
    return None


def rows(run: Run) -> list[list[str]]:
    """Make two rows on a run: judged by kNN, and as if there were no labels."""
    knn = {r["step"]: r["knn"] for r in run.records if "knn" in r and r["step"]}
    if not knn or run.steps_per_epoch is None:
        return []
    last, best, found = knn[max(knn)], max(knn.values()), []
    bare = [{k: v for k, v in r.items() if k != "knn"} for r in run.records]
    for by, records in ((verdict.KNN, run.records), (verdict.WITHOUT_LABELS, bare)):
        step = stop_at(run, records)
        at = "never" if step is None else f"{run.epochs([step])[0]:g}"
        numbers = (last if step is None else knn[step], last, best)
        found.append([run.name, by.title, at, *(f"{100 * k:.2f} %" for k in numbers)])
    return found
