"""The verdict on a run after each score, and whether all its processes end the run by it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from moco_jax.data import order
from moco_jax.monitoring.diagnosis.history import Facts, facts_of
from moco_jax.monitoring.verdict import Verdict, first_stop, judge
from moco_jax.parallel import hosts
from moco_jax.training.step_plan import StepPlan


class Verdicts:
    """Judges a run by its records, those of earlier parts of it among them.

    Process 0 has the records, and judges for all: what others find does not count.

    Attributes:
        latest: the verdict after the last score.
        stops: whether the run ends by it, as `stop_when` says; every process has the same.
    """

    def __init__(
        self,
        config: ConfigDict,
        plan: StepPlan,
        facts: Callable[[], Facts],
        records: Sequence[Mapping[str, Any]],
    ):
        """Judge the run by its `records` so far; every process must call this.

        `facts`: gives those that hold by now.
        """
        self._config, self._plan, self._facts = config, plan, facts
        self.after(plan.start, records)

    def after(self, step: int, records: Sequence[Mapping[str, Any]]) -> Verdict:
        """Judge the run after `step` by its `records`; every process must call this."""
        self.latest = judge(records, self._facts(), self._plan.epoch, self._config.patience)
        self.stops = False
        if self._config.stop_when != "never" and step < self._plan.last:
            self.stops = hosts.broadcast(self.latest.stops)
        return self.latest

    def ending(self, step: int) -> str:
        """Say that the run has ended early, after `step`, and how it would go on."""
        config = self._config
        return (
            f"ended by stop_when={config.stop_when!r} at step {step:,}, epoch "
            f"{self._plan.epoch(step):g} of {self._plan.epochs:.4g}: {self.latest.line}. To "
            f"go on, give the same command with --config.stop_when=never, or with a patience above "
            f"{config.patience}: --config.patience={2 * config.patience}"
        )


def never_stops(config: ConfigDict, images: int) -> str:
    """Say that `stop_when` cannot end a run on so many `images` early, and what would change that.

    '' where it can, is not asked to, or time decides how many scores there are.
    """
    every, patience = config.monitor_every, config.patience
    if config.stop_when == "never" or not every or config.minutes:
        return ""
    facts = facts_of(config.to_dict(), images)
    begun = facts.begun / order.steps_per_epoch(images, config.batch_size)

    def scores(every: int) -> list[int]:
        return [epoch for epoch in range(every, config.epochs, every) if epoch >= begun]

    def stops(every: int, patience: int) -> bool:
        return first_stop(scores(every), facts.lr_drops, patience) is not None

    if stops(every, patience):
        return ""
    count, fall = len(scores(every)), max(facts.lr_drops, default=0)
    oftener = (n for n in range(min(every, config.epochs) - 1, 0, -1) if stops(n, patience))
    sooner = (n for n in range(min(patience - 1, count // 2), 1, -1) if stops(every, n))
    better = {"monitor_every": next(oftener, 0), "patience": next(sooner, 0)}
    use = " or ".join(f"{name}={value}" for name, value in better.items() if value)
    need = f"{2 * patience} scores (twice patience={patience})"
    have = f"before the last of {config.epochs} epochs {count} count"
    if fall:
        need += f", {patience} of them after the learning rate has fallen at epoch {fall}"
        have += f", {sum(epoch > fall for epoch in scores(every))} of them after that"
    return (
        f"stop_when={config.stop_when!r} will not end this run early, unless it collapses: that "
        f"takes {need}, and {have}; use {use or 'more epochs'}"
    )
