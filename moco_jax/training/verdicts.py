"""The verdict on a run after each score, and whether all its processes end the run by it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from moco_jax.monitoring.diagnosis.history import Facts
from moco_jax.monitoring.verdict import Verdict, judge
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
