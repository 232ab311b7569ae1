"""Questions that several rules ask of a run.

The rules' thresholds lie between the numbers of runs that learn, called sound beside them, and of
runs that fail. `python -m benchmarks.faults` trains runs of both kinds.
"""

from collections.abc import Sequence

from moco_jax.monitoring.diagnosis.history import Facts, Record, RunHistory

FAIR = 0.5  # share of a run after which its kNN accuracy should say something
KNN_NOISE = 0.02  # of kNN accuracy: two standard errors of 500 queries at 75 %
KNN_LOST = 0.05  # of kNN accuracy: a fall that is no noise
TRAINED = 500  # steps before kNN is judged; sound runs before: below the untrained encoder
SLOW_MOMENTUM = 0.99  # MoCo v1, table: 0.99 to 0.9999 work, 0.9 is worse, 0 fails


def percent(share: float) -> str:
    """Write a share in per cent, with one decimal."""
    return f"{100 * share:.1f} %"


def beside_chance(recent: Sequence[Record], facts: Facts) -> str:
    """Write the latest loss beside its chance level; empty where one of them is unknown."""
    if not recent or facts.chance is None:
        return ""
    return f", loss {recent[-1]['loss']:.2f} where chance is {facts.chance:.2f}"


def knn_rises(history: RunHistory) -> bool:
    """Return whether the last kNN accuracy is the best so far.

    A single one is compared with that of the untrained encoder.
    """
    *earlier, last = [score for _, score in history.knn]
    return last > max(earlier, default=history.untrained or 0)


def knn_useless(history: RunHistory, facts: Facts) -> bool:
    """Return whether kNN, late in the run, is no better than before training and does not rise."""
    knn, untrained = history.knn, history.untrained
    if len(knn) < 3 or untrained is None or not facts.total_steps:
        return False
    late = history.last >= max(TRAINED, FAIR * facts.total_steps)
    return late and max(k for _, k in knn) <= untrained + KNN_NOISE and not knn_rises(history)
