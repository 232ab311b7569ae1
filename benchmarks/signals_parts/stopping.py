"""Replays the scores of runs: when each would have been told to stop, and what that costs."""

from collections.abc import Sequence

from moco_jax.monitoring import verdict
from moco_jax.monitoring.diagnosis.history import Facts, Record

HEADS = ["run", "judged by", "stop at epoch", "kNN there", "kNN at the end", "best kNN"]
Scores = Sequence[tuple[float, Record]]


def stop_at(scores: Scores, facts: Facts, patience: int) -> int | None:
    """Return the place of the score after which the run is told to stop; None if never."""
    for place in range(len(scores)):
        if verdict.judge(scores[: place + 1], facts, patience).stops:
            return place
    return None


def rows(run: str, scores: Scores, facts: Facts, patience: int) -> list[list[str]]:
    """Make two rows on a run: judged by kNN, and as if there were no labels."""
    knn = [record["knn"] for _, record in scores]
    bare = [(e, {k: v for k, v in r.items() if k != "knn"}) for e, r in scores]
    found = []
    for by, some in ((verdict.KNN.title, scores), (verdict.WITHOUT_LABELS.title, bare)):
        place = stop_at(some, facts, patience)
        at = "never" if place is None else f"{scores[place][0]:g}"
        there = knn[-1 if place is None else place]
        found.append([run, by, at, *(f"{100 * k:.2f} %" for k in (there, knn[-1], max(knn)))])
    return found
