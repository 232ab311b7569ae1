"""Rules on features that lose what they could say: collapse, few directions, drifting keys."""

from moco_jax.base.findings import FAULT, WARNING, Finding
from moco_jax.monitoring.diagnosis.history import Facts, RunHistory
from moco_jax.monitoring.diagnosis.judgements import SLOW_MOMENTUM, beside_chance

COLLAPSED = 0.1  # spread; sound runs: above 0.3, collapsed: below 0.06
DIRECTIONS = 3.0  # effective rank; encoders before training: 19 and more
DRIFT = 0.3  # of the distance between keys of different images, see monitoring/drift.py
# Recipes have 5e-4, 1.5e-6 and 0.1 at most.
MUCH_DECAY = {"sgd": 1e-2, "lars": 1e-2, "adamw": 1.0}


def collapsed(history: RunHistory, facts: Facts) -> Finding | None:
    """Find a collapse: all images have the same features."""
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
            f"1){beside_chance(recent, facts)}."
        ),
        meaning=(
            "The encoder has collapsed: it gives one answer to every image, and seldom comes back "
            "from there."
        ),
        change=change + " A collapsed run is best begun again.",
    )


def few_directions(history: RunHistory, facts: Facts) -> Finding | None:
    """Warn of features that differ along a few directions only."""
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


def drift(history: RunHistory, facts: Facts) -> Finding | None:
    """Warn of old keys in the queue, far from those that the key encoder makes now."""
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
