"""Rules on what the features are worth: leaks, shortcuts, and the kNN accuracy."""

from moco_jax.base.findings import FAULT, NOTE, WARNING, Finding
from moco_jax.monitoring.diagnosis.history import Facts, RunHistory
from moco_jax.monitoring.diagnosis.judgements import (
    FAIR,
    KNN_LOST,
    KNN_NOISE,
    TRAINED,
    beside_chance,
    knn_rises,
    knn_useless,
    percent,
)

EASY = 0.9  # contrastive top-1; sound runs of the default recipes: 0.15 to 0.8 at their end
LEARNT = 0.7  # of the chance level; sound runs half-way: below
SOLVED = 0.98  # contrastive top-1; without shuffled BN MoCo v1's reached 0.999 (appendix)
STUCK = 0.25  # share of a run without a better kNN


def leak(history: RunHistory, facts: Facts) -> Finding | None:
    """Warn where BatchNorm's statistics may give away a query's own key."""
    if not facts.leaks:
        return None
    method, easy = facts.method, nearly_solved(history, facts)
    how = (
        "shuffle='none'"
        if method.shuffle == "none"
        else "one BatchNorm group, which nothing can shuffle"
    )
    size = facts.batch_size // method.bn_groups
    seen = f"{how}: a query and its key go through BatchNorm with the same {size} images."
    if easy:
        seen += f" {easy.seen}"
    return Finding(
        name="batch_norm_leak",
        severity=FAULT if easy and easy.severity == WARNING else WARNING,
        since_step=0,
        seen=seen,
        meaning=(
            "Their statistics give away which key is a query's own: contrastive top-1 goes up, "
            "features get worse (MoCo v1, section 3.3)."
        ),
        change=(
            "shuffle='exchange' with bn_groups of 2 or more. To tell: train a little both ways; "
            "with a leak the shuffled run has the lower top-1 and the better kNN."
        ),
    )


def shortcut(history: RunHistory, facts: Facts) -> Finding | None:
    """Warn of a shortcut: keys are found by something that is not worth learning."""
    return None if facts.leaks else nearly_solved(history, facts)


def nearly_solved(history: RunHistory, facts: Facts) -> Finding | None:
    """Find a contrastive task that is learnt or nearly solved, and judge the features by kNN."""
    recent, knn, untrained = history.recent(facts.begun), history.knn, history.untrained
    if not recent:
        return None
    easy = min(r.get("top1", 0) for r in recent) >= EASY
    below = facts.chance is not None and max(r["loss"] for r in recent) < LEARNT * facts.chance
    best = max((score for _, score in knn), default=0)
    falls = bool(knn) and knn[-1][1] < best - KNN_LOST
    no_better = bool(knn) and untrained is not None and knn[-1][1] <= untrained + KNN_NOISE
    bad = (easy and (falls or no_better)) or (below and knn_useless(history, facts))
    top1 = recent[-1]["top1"]
    if not bad and not (easy and top1 >= SOLVED):
        return None
    seen = f"Contrastive top-1 is {percent(top1)}{beside_chance(recent, facts)}"
    if knn:
        seen += f", and kNN is {percent(knn[-1][1])}"
    if bad and untrained is not None:
        seen += f" (before training {percent(untrained)}, at best {percent(max(best, untrained))})"
    solved = "The task is nearly solved, which says nothing good of the features."
    other = "Queries find their keys by something that does not tell these classes apart."
    colours = (
        "Views with the colours of the image share them, and a network that compares colours is "
        "done."
        if not facts.changes_colours
        else "Colour, brightness, a border or a noise pattern that both views share may be enough."
    )
    return Finding(
        name="shortcut",
        severity=WARNING if bad or not knn else NOTE,
        since_step=recent[0]["step"],
        seen=seen + ".",
        meaning=f"{solved if easy else other} {colours}",
        change=(
            f"Stronger views: augment='v2' changes colours (the run has {facts.views}), a lower "
            "crop_min shows less; more negatives. To tell: where that lowers top-1 and raises kNN, "
            "it was a shortcut."
        ),
    )


def knn_falling(history: RunHistory, facts: Facts) -> Finding | None:
    """Warn of a falling kNN accuracy: the features get worse."""
    knn = [(step, score) for step, score in history.knn if step >= TRAINED]
    if len(knn) < 3:
        return None
    step, best = max(knn[:-2], key=lambda score: score[1])
    if max(score for _, score in knn[-2:]) > best - KNN_LOST:
        return None
    return Finding(
        name="knn_falling",
        severity=WARNING,
        since_step=step,
        seen=f"kNN has fallen from {percent(best)} (step {step:,}) to {percent(knn[-1][1])}.",
        meaning=(
            "The encoder unlearns what tells classes apart, while it may find keys better and "
            "better."
        ),
        change=(
            "If contrastive top-1 rises meanwhile, it is a shortcut or a leak of BatchNorm: "
            "stronger views, shuffle='exchange'. If not, take a lower lr. The best checkpoint so "
            "far is kept."
        ),
    )


def knn_stuck(history: RunHistory, facts: Facts) -> Finding | None:
    """Find a kNN accuracy that has not risen for long, or has never risen."""
    knn, untrained = history.knn, history.untrained
    if len(knn) < 3 or not facts.total_steps or knn_falling(history, facts):
        return None
    step, best = max(knn, key=lambda score: score[1])
    if knn_useless(history, facts):
        if nearly_solved(history, facts):
            return None
        return Finding(
            name="knn_stuck",
            severity=WARNING,
            since_step=0,
            seen=(
                f"kNN is {percent(knn[-1][1])}, no better than before training "
                f"({percent(untrained or 0)})."
            ),
            meaning=(
                "What the run learns does not tell these classes apart, and the loss is not far "
                "below chance."
            ),
            change=(
                "See the other findings first. Without any: a lower lr, more epochs, or other "
                "views (python -m moco_jax.doctor draws them)."
            ),
        )
    learnt = untrained is None or best > untrained + KNN_NOISE
    earlier = [score for s, score in knn if s < history.last - STUCK * facts.total_steps]
    if not learnt or len(knn) - len(earlier) < 3 or best > max(earlier, default=0) + KNN_NOISE / 2:
        return None
    return Finding(
        name="knn_stuck",
        severity=NOTE,
        since_step=step,
        seen=f"kNN has stood at {percent(best)} since step {step:,}.",
        meaning=(
            "A plateau is usual while the learning rate is high, and at the end of a run; the loss "
            "goes on falling."
        ),
        change=(
            "Wait for the learning rate to fall. At the end: more epochs, a larger arch, or "
            "stronger views."
        ),
    )


def below_pixels(history: RunHistory, facts: Facts) -> Finding | None:
    """Find features whose kNN accuracy is below that of the pixels."""
    knn, raw = history.knn, history.raw
    if raw is None or not knn or not facts.total_steps or knn[-1][0] < FAIR * facts.total_steps:
        return None
    step, now = knn[-1]
    if now >= raw - KNN_NOISE:
        return None
    rises = knn_rises(history) or step < TRAINED
    return Finding(
        name="below_pixels",
        severity=NOTE if rises else WARNING,
        since_step=step,
        seen=(
            f"kNN is {percent(now)}, that of raw pixels {percent(raw)}, and "
            f"{step / facts.total_steps:.0%} of the run is over."
        ),
        meaning="It still rises, or has only begun to: the run is short for what it has to learn."
        if rises
        else "The features are worth less than the images themselves, and do not get better.",
        change="More epochs. In simple images pixels are hard to beat."
        if rises
        else "See the other findings first. Without any, try a lower lr, then other views.",
    )
