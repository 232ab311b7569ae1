"""Rules on the loss, its gradients, and the time that devices wait for images."""

from moco_jax.base.findings import FAULT, NOTE, WARNING, Finding
from moco_jax.monitoring.diagnosis.history import QUEUES, Facts, RunHistory
from moco_jax.monitoring.diagnosis.judgements import SLOW_MOMENTUM

CHANCE = 0.98  # of the chance level; sound runs once warm: below, collapsed: above 0.99
RISE = 0.02  # of the chance level: a rise that a person sees in the progress line
LOST = 0.1  # of the chance level: a rise that is not by chance; sound runs: 0.02
FALLEN = 0.5  # of the learning rate at the lowest loss: below it, the schedule explains a rise
SPIKES = 5  # events in SPIKES_WITHIN steps; sound runs: one in a thousand steps
SPIKES_WITHIN = 100
READY = 20  # steps after a start until batches come steadily
MUCH_WAITING = 0.1  # share of the time spent waiting for data


def queue_filling(history: RunHistory, facts: Facts) -> Finding | None:
    """Note a loss that rises while keys of images replace the random vectors in the queue."""
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


def at_chance(history: RunHistory, facts: Facts) -> Finding | None:
    """Find a loss that stays at the chance level."""
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


def loss_rising(history: RunHistory, facts: Facts) -> Finding | None:
    """Warn of a loss that rises after the queue is full."""
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


def spikes(history: RunHistory, facts: Facts) -> Finding | None:
    """Warn of gradients that jump, or are not finite, again and again."""
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


def starved(history: RunHistory, facts: Facts) -> Finding | None:
    """Warn of devices that wait for images."""
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
