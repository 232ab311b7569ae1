"""Rules that turn the records of a run into findings, each with its meaning and a change.

`examine` is pure and needs nothing but a workdir's two files: the records of `metrics.jsonl`, and
facts that follow from `config.json` and the number of images (in the event `start` of the records).
docs/troubleshooting.md has the same rules by symptom.
"""

from collections.abc import Callable, Sequence

from etils import epath

from moco_jax.base.findings import FAULT, NOTE, WARNING, Finding
from moco_jax.monitoring import run_log
from moco_jax.monitoring.diagnosis.history import (
    QUEUES,
    Facts,
    Record,
    RunHistory,
    facts_of,
    images_of,
)
from moco_jax.workdir import recipe_check

MUCH_WAITING = 0.1  # share of the time spent waiting for data
COLLAPSED = 0.1  # spread; runs that learnt were above 0.3, collapsed ones below 0.06
# Of the chance level: a run that learns is below it once warm; collapsed ones were above 0.99.
CHANCE = 0.98
RISE = 0.02  # of the chance level: a rise that a person sees in the progress line
LOST = 0.1  # of the chance level: a rise that is none of chance; healthy runs rose by 0.02
FAIR = 0.5  # share of a run after which its kNN accuracy should say something
FALLEN = 0.5  # of the learning rate at the lowest loss: below it, the schedule explains a rise
EASY = 0.9  # contrastive top-1; healthy runs of the default recipes ended between 0.15 and 0.8
LEARNT = 0.7  # of the chance level: recorded runs whose features got better were below it half-way
SOLVED = 0.98  # contrastive top-1; without shuffled BN MoCo v1's reached 0.999 (appendix)
KNN_NOISE = 0.02  # of kNN accuracy: two standard errors of 500 queries at 75 %
KNN_LOST = 0.05  # of kNN accuracy: a fall that is no noise
# Steps before kNN is judged: that of a run that learnt was below the untrained encoder's before.
TRAINED = 500
STUCK = 0.25  # share of a run without a better kNN
DRIFT = 0.3  # of the distance between keys of different images, see monitoring/drift.py
DIRECTIONS = 3.0  # effective rank; that of encoders before training was 19 and more
READY = 20  # steps after a start until batches come steadily
SPIKES = 5  # events in SPIKES_WITHIN steps; healthy runs had one in a thousand
SPIKES_WITHIN = 100
# Recipes have 5e-4, 1.5e-6 and 0.1 at most.
MUCH_DECAY = {"sgd": 1e-2, "lars": 1e-2, "adamw": 1.0}
SLOW_MOMENTUM = 0.99  # MoCo v1, table: 0.99 to 0.9999 work, 0.9 is worse, 0 fails


def of_workdir(workdir: epath.Path) -> list[Finding]:
    """Find what the two files in `workdir` show of its run."""
    records = run_log.records(workdir)
    return examine(records, facts_of(recipe_check.settings(workdir), images_of(records)))


Rule = Callable[[RunHistory, Facts], Finding | None]
RULES: list[Rule] = []
# Of runs that have not collapsed; of others they would say what follows from that.
RULES_OF_LIFE: list[Rule] = []


def rule(function: Rule) -> Rule:
    """Register `function` as a rule of any run."""
    RULES.append(function)
    return function


def rule_of_life(function: Rule) -> Rule:
    """Register `function` as a rule of runs that have not collapsed."""
    RULES_OF_LIFE.append(function)
    return function


def examine(records: Sequence[Record], facts: Facts) -> list[Finding]:
    """Find what `records` show of the run with these `facts`; at most one finding of each name.

    `records` are in the order of `metrics.jsonl`.
    """
    history = RunHistory(records)
    rules = RULES if _collapsed(history, facts) else [*RULES, *RULES_OF_LIFE]
    found = (check(history, facts) for check in rules)
    return [finding for finding in found if finding]


@rule
def _queue_filling(history: RunHistory, facts: Facts) -> Finding | None:
    """The loss rises while keys of images replace the random vectors."""
    if facts.method.dictionary != "queue" or facts.chance is None:
        return None
    logs = [r for r in history.logs if r["step"] <= QUEUES * facts.renewed_steps]
    if not logs:
        return None
    low = min(logs, key=lambda r: r["loss"])
    high = max((r for r in logs if r["step"] >= low["step"]), key=lambda r: r["loss"])
    if high["loss"] - low["loss"] < RISE * facts.chance:
        return None
    return Finding(
        name="queue_filling",
        severity=NOTE,
        since_step=low["step"],
        seen=(
            f"The loss rose from {low['loss']:.2f} (step {low['step']:,}) to {high['loss']:.2f} "
            f"(step {high['step']:,})."
        ),
        meaning=(
            "The queue starts with random vectors, which are easy to tell from a key; real keys "
            f"are not, and they fill it by step {facts.renewed_steps:,}."
        ),
        change="Nothing: every run with a queue begins like this.",
    )


@rule
def _collapsed(history: RunHistory, facts: Facts) -> Finding | None:
    """All images have the same features."""
    recent = history.recent(facts.begun)
    flat = bool(recent) and all(r.get("spread", 1) < COLLAPSED for r in recent)
    backbone = bool(history.scores) and history.scores[-1]["feature_spread"] < COLLAPSED
    if not flat and not backbone:
        return None
    if flat:
        logs = [r for r in history.logs if r.get("spread", 1) >= COLLAPSED]
        since = next(r["step"] for r in history.logs if not logs or r["step"] > logs[-1]["step"])
        spread, what = recent[-1]["spread"], "queries"
    else:
        since, what = history.scores[-1]["step"], "features"
        spread = history.scores[-1]["feature_spread"]
    change = "Take a lower lr, a tenth of it for a trial, or a longer warmup_epochs."
    if facts.method.key_encoder == "momentum" and facts.momentum < SLOW_MOMENTUM:
        change = (
            f"momentum={facts.momentum:g} lets keys change as fast as queries: 0.99 (short runs) "
            "to 0.999. If it is still so, take a lower lr."
        )
    elif facts.weight_decay > (most := MUCH_DECAY[facts.optimizer]):
        change = (
            f"weight_decay={facts.weight_decay:g} shrinks the weights faster than they learn; with "
            f"{facts.optimizer!r} {most:g} is much already."
        )
    return Finding(
        name="collapsed",
        severity=FAULT,
        since_step=since,
        seen=(
            f"Nearly all images have the same {what} (spread {spread:.3f} of "
            f"1){_beside_chance(recent, facts)}."
        ),
        meaning=(
            "The encoder has collapsed: it gives one answer to every image, and seldom comes back "
            "from there."
        ),
        change=change + " A collapsed run is best begun again.",
    )


def _beside_chance(recent: Sequence[Record], facts: Facts) -> str:
    if not recent or facts.chance is None:
        return ""
    return f", loss {recent[-1]['loss']:.2f} where chance is {facts.chance:.2f}"


@rule_of_life
def _at_chance(history: RunHistory, facts: Facts) -> Finding | None:
    """The loss does not come below what guessing gives."""
    recent = history.recent(facts.begun)
    if facts.chance is None or not recent:
        return None
    if min(r["loss"] for r in recent) < CHANCE * facts.chance:
        return None
    return Finding(
        name="at_chance",
        severity=FAULT,
        since_step=recent[0]["step"],
        seen=f"The loss is {recent[-1]['loss']:.2f}, and guessing gives {facts.chance:.2f}.",
        meaning="Queries do not find their keys: nothing is learnt.",
        change=(
            f"Take a lower lr (it is {facts.lr:g}), or a longer warmup_epochs; look at the views "
            "(python -m moco_jax.doctor draws them): two views of an image must have something in "
            "common."
        ),
    )


@rule_of_life
def _loss_rising(history: RunHistory, facts: Facts) -> Finding | None:
    """The loss rises although the queue is full."""
    recent = history.recent(facts.begun)
    if facts.chance is None or not recent:
        return None
    earlier = [r for r in history.logs if facts.renewed_steps < r["step"] < recent[0]["step"]]
    if not earlier:
        return None
    low = min(earlier, key=lambda r: r["loss"])
    now = sum(r["loss"] for r in recent) / len(recent)
    rise = (now - low["loss"]) / facts.chance
    if facts.method.dictionary == "queue" and recent[-1].get("lr", 0) < FALLEN * low.get("lr", 0):
        if rise < LOST / 2:
            return None
        return Finding(
            name="loss_rising",
            severity=NOTE,
            since_step=low["step"],
            seen=(
                f"The loss has risen from {low['loss']:.2f} (step {low['step']:,}) to {now:.2f}, "
                "while the learning rate fell."
            ),
            meaning=(
                "Until then keys in the queue were out of date, and a query could tell its own key "
                "from them by age alone; now they are not, and the task is harder."
            ),
            change=(
                "Nothing in this run. In the next, a momentum nearer to 1 (it is "
                f"{facts.momentum:g}), a lower lr or a smaller queue_size makes keys of all ages "
                "agree from the start (see drift)."
            ),
        )
    if rise < LOST:
        return None
    fast = facts.method.key_encoder == "momentum" and facts.momentum < SLOW_MOMENTUM
    return Finding(
        name="loss_rising",
        severity=WARNING,
        since_step=low["step"],
        seen=(
            f"The loss has risen from {low['loss']:.2f} (step {low['step']:,}) to {now:.2f}, long "
            "after the dictionary was renewed."
        ),
        meaning=(
            "Queries find their keys less and less: keys of different age disagree, or the steps "
            "are too large."
        ),
        change=f"Raise momentum (it is {facts.momentum:g}) to 0.99 or 0.999."
        if fast
        else f"Take a lower lr (it is {facts.lr:g}).",
    )


@rule_of_life
def _drift(history: RunHistory, facts: Facts) -> Finding | None:
    """Keys in the queue are not those that the key encoder would make now."""
    far = [r for r in history.scores if r.get("drift", 0) > DRIFT and r["step"] > facts.begun]
    if not far:
        return None
    fast = f"Raise momentum (it is {facts.momentum:g}) to 0.99 or 0.999."
    slow = f"Take a lower lr (it is {facts.lr:g}), a momentum nearer to 1, or a smaller queue_size."
    return Finding(
        name="drift",
        severity=WARNING,
        since_step=far[0]["step"],
        seen=(
            f"While a key is in the queue, the key encoder moves it by {far[-1]['drift']:.2f} "
            "times the distance between images."
        ),
        meaning=(
            "The dictionary is not consistent: old keys are no longer what a query should be "
            "compared with (MoCo v1, section 3.2)."
        ),
        change=fast if facts.momentum < SLOW_MOMENTUM else slow,
    )


@rule_of_life
def _few_directions(history: RunHistory, facts: Facts) -> Finding | None:
    """Features differ, but only along a few directions."""
    scores = [r for r in history.scores if r["step"] > facts.begun and "effective_rank" in r]
    if not scores or scores[-1]["effective_rank"] >= DIRECTIONS:
        return None
    low = scores[-1]["effective_rank"]
    return Finding(
        name="few_directions",
        severity=WARNING,
        since_step=next(r["step"] for r in scores if r["effective_rank"] < DIRECTIONS),
        seen=f"The features have an effective rank of {low:.1f}: they differ along few directions.",
        meaning=(
            "Most of what the encoder could say of an image is lost; a full collapse may follow."
        ),
        change=f"Take a lower lr (it is {facts.lr:g}) or weight_decay.",
    )


@rule
def _spikes(history: RunHistory, facts: Facts) -> Finding | None:
    """Gradients jump, or are not finite, again and again."""
    steps = [e["step"] for e in history.events if e["event"] in ("gradient_spike", "skipped_step")]
    for first, last in zip(steps, steps[SPIKES - 1 :], strict=False):
        if last - first < SPIKES_WITHIN:
            within = sum(first <= s < first + SPIKES_WITHIN for s in steps)
            return Finding(
                name="spikes",
                severity=WARNING,
                since_step=first,
                seen=(
                    f"{within} gradients within {SPIKES_WITHIN} steps were far above their usual "
                    "size, or not finite."
                ),
                meaning="The steps are too large for the loss: it jumps where it should go down.",
                change=(
                    f"Take a lower lr (it is {facts.lr:g}) or a longer warmup_epochs. If the "
                    "events in metrics.jsonl name the same images again and again, look at those."
                ),
            )
    return None


@rule
def _leak(history: RunHistory, facts: Facts) -> Finding | None:
    """BatchNorm's statistics may name a query's key."""
    if not facts.leaks:
        return None
    method, easy = facts.method, _easy(history, facts)
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


@rule
def _shortcut(history: RunHistory, facts: Facts) -> Finding | None:
    """Keys are found by something that is not worth learning."""
    return None if facts.leaks else _easy(history, facts)


def _easy(history: RunHistory, facts: Facts) -> Finding | None:
    """The contrastive task is learnt or nearly solved; kNN says whether features are good."""
    recent, knn, untrained = history.recent(facts.begun), history.knn, history.untrained
    if not recent:
        return None
    easy = min(r.get("top1", 0) for r in recent) >= EASY
    below = facts.chance is not None and max(r["loss"] for r in recent) < LEARNT * facts.chance
    best = max((score for _, score in knn), default=0)
    falls = bool(knn) and knn[-1][1] < best - KNN_LOST
    no_better = bool(knn) and untrained is not None and knn[-1][1] <= untrained + KNN_NOISE
    bad = (easy and (falls or no_better)) or (below and _useless(history, facts))
    top1 = recent[-1]["top1"]
    if not bad and not (easy and top1 >= SOLVED):
        return None
    seen = f"Contrastive top-1 is {_percent(top1)}{_beside_chance(recent, facts)}"
    if knn:
        seen += f", and kNN is {_percent(knn[-1][1])}"
    if bad and untrained is not None:
        seen += (
            f" (before training {_percent(untrained)}, at best {_percent(max(best, untrained))})"
        )
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
            f"Stronger views: augment='v2' changes colours (it is {facts.augment!r}), a lower "
            "crop_min shows less; more negatives. To tell: where that lowers top-1 and raises kNN, "
            "it was a shortcut."
        ),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


@rule
def _starved(history: RunHistory, facts: Facts) -> Finding | None:
    """The devices wait for images."""
    # In the first reading after a start, and in all of its first steps, the pipeline starts too.
    first = {next((r["step"] for r in history.logs if r["step"] > s), 0) for s in history.starts}
    logs = [
        r
        for r in history.logs
        if "waiting_share" in r
        and r["step"] not in first
        and not any(0 < r["step"] - s <= READY for s in history.starts)
    ]
    for three in zip(logs, logs[1:], logs[2:], strict=False):
        if min(r["waiting_share"] for r in three) > MUCH_WAITING:
            share = sum(r["waiting_share"] for r in three) / 3
            return Finding(
                name="starved",
                severity=NOTE if history.on_cpu else WARNING,
                since_step=three[0]["step"],
                seen=f"The devices wait for images {share:.0%} of the time.",
                meaning="Images are read, or views made, more slowly than the devices take them"
                + (": on a CPU both share the cores." if history.on_cpu else "."),
                change=(
                    "python -m moco_jax.doctor with these settings says why. More cores or workers "
                    "make views faster, a folder packed by moco_jax.pack is read faster."
                ),
            )
    return None


@rule
def _knn_falling(history: RunHistory, facts: Facts) -> Finding | None:
    """The features get worse."""
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
        seen=f"kNN has fallen from {_percent(best)} (step {step:,}) to {_percent(knn[-1][1])}.",
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


def _rises(history: RunHistory) -> bool:
    """Whether the last kNN is the best so far; a single one is compared with the untrained one."""
    *earlier, last = [score for _, score in history.knn]
    return last > max(earlier, default=history.untrained or 0)


def _useless(history: RunHistory, facts: Facts) -> bool:
    """Whether kNN, late in the run, is no better than before training and does not rise."""
    knn, untrained = history.knn, history.untrained
    if len(knn) < 3 or untrained is None or not facts.total_steps:
        return False
    late = history.last >= max(TRAINED, FAIR * facts.total_steps)
    return late and max(k for _, k in knn) <= untrained + KNN_NOISE and not _rises(history)


@rule
def _knn_stuck(history: RunHistory, facts: Facts) -> Finding | None:
    """No better kNN for long, or none at all."""
    knn, untrained = history.knn, history.untrained
    if len(knn) < 3 or not facts.total_steps or _knn_falling(history, facts):
        return None
    step, best = max(knn, key=lambda score: score[1])
    if _useless(history, facts):
        if _easy(history, facts):
            return None
        return Finding(
            name="knn_stuck",
            severity=WARNING,
            since_step=0,
            seen=(
                f"kNN is {_percent(knn[-1][1])}, no better than before training "
                f"({_percent(untrained or 0)})."
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
        seen=f"kNN has stood at {_percent(best)} since step {step:,}.",
        meaning=(
            "A plateau is usual while the learning rate is high, and at the end of a run; the loss "
            "goes on falling."
        ),
        change=(
            "Wait for the learning rate to fall. At the end: more epochs, a larger arch, or "
            "stronger views."
        ),
    )


@rule_of_life
def _below_pixels(history: RunHistory, facts: Facts) -> Finding | None:
    """The features are worth less than the pixels."""
    knn, raw = history.knn, history.raw
    if raw is None or not knn or not facts.total_steps or knn[-1][0] < FAIR * facts.total_steps:
        return None
    step, now = knn[-1]
    if now >= raw - KNN_NOISE:
        return None
    rises = _rises(history) or step < TRAINED
    return Finding(
        name="below_pixels",
        severity=NOTE if rises else WARNING,
        since_step=step,
        seen=(
            f"kNN is {_percent(now)}, that of raw pixels {_percent(raw)}, and "
            f"{step / facts.total_steps:.0%} of the run is over."
        ),
        meaning="It still rises, or has only begun to: the run is short for what it has to learn."
        if rises
        else "The features are worth less than the images themselves, and do not get better.",
        change="More epochs. In simple images pixels are hard to beat."
        if rises
        else "See the other findings first. Without any, try a lower lr, then other views.",
    )
