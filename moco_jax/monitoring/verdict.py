"""Whether a run still improves, or can be stopped: a plain verdict by all its scores so far.

One score decides nothing. The mean of the latest `patience` scores is compared with the best mean
of as many scores in a row before them; it must be better by more than such means scatter.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from moco_jax.monitoring.diagnosis import feature_rules
from moco_jax.monitoring.diagnosis.history import Facts, Record, RunHistory

# States of a run; in WAITING nothing is gained, but the learning rate is going to fall.
EARLY, IMPROVING, NO_GAIN = "early", "improving", "no_gain"
WAITING, COLLAPSED = "waiting", "collapsed"
FEW = 4  # scores after which a rise may be spoken of


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of a score by which a run is judged; more of it is better.

    Attributes:
        key: its name in a record.
        title: for a person.
        form: how a value is written.
        least: the smallest gain that is worth a longer run, however little scores scatter.
        relative: whether `least` is a share of what was there before.
    """

    key: str
    title: str
    form: str
    least: float
    relative: bool

    def worth(self, before: float) -> float:
        """Return the smallest gain over `before` that is worth a longer run."""
        return self.least * abs(before) if self.relative else self.least

    def shown(self, value: float) -> str:
        """Format a value for a person."""
        return f"{self.title} {value:{self.form}}"


KNN = Measure("knn", "kNN", ".2%", 0.002, False)
WITHOUT_LABELS = Measure("effective_rank", "effective rank", ".2f", 0.01, True)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on a run after its last score.

    Attributes:
        state: EARLY (too few scores), IMPROVING, NO_GAIN, WAITING or COLLAPSED.
        stops: whether nothing was gained for so long that the run may end.
        line: what is said of it while it goes on.
        at_end: what is said of it once it has ended; empty where there is nothing to say.
    """

    state: str
    stops: bool
    line: str
    at_end: str


TOO_EARLY = Verdict(EARLY, False, "too early to say whether it improves", "")
STILL = Verdict(
    IMPROVING,
    False,
    "still improving",
    "the run was still improving at its end: more epochs may gain more",
)


def scatter(values: Sequence[float] | np.ndarray) -> float:
    """Return the standard deviation of one of `values` about the course that they follow.

    It is taken from second differences, in which a steady rise cancels out, by their median, on
    which a single jump has no influence; 0 for less than three values.
    """
    if len(values) < 3:
        return 0.0
    # A second difference of independent values has six times the variance of one.
    with np.errstate(all="ignore"):  # damaged records may hold any numbers
        return float(np.median(np.abs(np.diff(values, 2))) / 0.6745 / math.sqrt(6))


def gained(values: Sequence[float], measure: Measure, together: int) -> bool:
    """Return whether the last `together` of `values` gained over as many before them.

    Their mean must be better than the best mean of as many in a row before, by what is worth it and
    by more than the standard error of the difference.
    """
    before = len(values) - together
    sums = [0.0, *itertools.accumulate(values)]
    means = [(sums[end] - sums[end - together]) / together for end in range(together, before + 1)]
    best, error = max(means), scatter(values) * math.sqrt(2 / together)
    return (sums[-1] - sums[before]) / together - best > max(measure.worth(best), error)


def judge(
    records: Sequence[Record], facts: Facts, epoch_of: Callable[[int], float], patience: int
) -> Verdict:
    """Judge a run by its records.

    Args:
        records: of the run up to a score, oldest first.
        facts: on the run. What is scored before `facts.begun`, and before training, does not count.
        epoch_of: from a step to how many epochs are over after it.
        patience: how many scores are taken together.
    """
    scores = [r for r in records if "feature_spread" in r and "event" not in r]
    scores = [r for r in scores if r["step"] > 0 and r["step"] >= facts.begun]
    if not scores:
        return TOO_EARLY
    now, last = epoch_of(scores[-1]["step"]), scores[-1]
    flat = _flat(records, scores, facts)
    if flat[-1]:
        streak = len(list(itertools.takewhile(bool, reversed(flat))))
        words = f"the run has collapsed, since epoch {epoch_of(scores[-streak]['step']):g}"
        return Verdict(COLLAPSED, streak >= patience, f"{words}: begin again", words)
    measure = KNN if KNN.key in last else WITHOUT_LABELS
    known = [
        (epoch_of(record["step"]), float(record[measure.key]))
        for record, is_flat in zip(scores, flat, strict=True)
        if not is_flat and math.isfinite(record.get(measure.key, math.nan))
    ]
    values, fallen = [value for _, value in known], [d for d in facts.lr_drops if d <= now]
    begun = max(fallen, default=0)  # a fall may bring a gain, which the first scores have not yet
    if len(known) < 2 * patience or known[-patience][0] <= begun:
        rises = len(known) >= FEW and gained(values, measure, len(known) // 2)
        return STILL if rises else TOO_EARLY
    if gained(values, measure, patience):
        return STILL
    # Since when: the latest scores as they were when they first had gained nothing.
    end = len(known)
    while end > 2 * patience and not gained(values[: end - 1], measure, patience):
        end -= 1
    epochs = now - max(known[end - patience - 1][0], begun)
    mean = sum(value for _, value in known[-patience:]) / patience
    of = f"{measure.shown(mean)} in the mean of {patience} scores"
    words = f"nothing gained for {epochs:g} epochs ({of})"
    coming = [drop for drop in facts.lr_drops if drop > now]
    if coming:
        falls = f"the learning rate falls at epoch {min(coming):g}, which may bring a gain"
        return Verdict(WAITING, False, f"{words}, but {falls}", words)
    return Verdict(NO_GAIN, True, f"{words}: you can stop", words)


def first_stop(scored: Sequence[float], drops: Sequence[float], patience: int) -> float | None:
    """Return the first epoch after which `judge` may find that nothing was gained; None if none.

    Args:
        scored: epochs after which a run scores itself, ascending; those whose scores count.
        drops: epochs after which the learning rate falls by steps.
        patience: how many scores are taken together.
    """
    last = max(drops, default=0)
    for place in range(2 * patience, len(scored) + 1):
        if scored[place - patience] > last:
            return scored[place - 1]
    return None


def _flat(records: Sequence[Record], scores: Sequence[Record], facts: Facts) -> list[bool]:
    """Tell for each of `scores` whether images had nearly the same features, or queries."""
    found = feature_rules.collapsed(RunHistory(records), facts)
    since = math.inf if found is None or found.since_step is None else found.since_step
    return [r["feature_spread"] < feature_rules.COLLAPSED or r["step"] >= since for r in scores]
