"""Which steps of a run are logged, scored and saved."""

import dataclasses

from ml_collections import ConfigDict

from moco_jax.base.errors import UserError
from moco_jax.training import checkpoint
from moco_jax.training.assembly import RunSetup


@dataclasses.dataclass
class StepPlan:
    """Steps of a run at which something besides training happens, counted from 1.

    Attributes:
        start: the step after which the run begins, or goes on.
        last: the step at which the run ends; a time budget moves it.
        stop: a step at which this command ends before that; 0 for none.
        shift: steps that a run with this batch size would be further on; other than 0 where the
            batch size was changed on the way.
        steps_per_epoch: steps of an epoch with this batch size.
        log_every, score_every, save_every: steps between logs, scores (0: none) and checkpoints.
    """

    start: int
    last: int
    stop: int
    shift: int
    steps_per_epoch: int
    log_every: int
    score_every: int
    save_every: int

    @classmethod
    def of(cls, config: ConfigDict, setup: RunSetup, start: int, schedule_step: int) -> "StepPlan":
        """Make the plan of a run that goes on after `start`; schedules are at `schedule_step`.

        Raises:
            UserError: the command would end before the step at which the run is.
        """
        # Epochs and schedules count the steps of a run that had this batch size from its beginning.
        # Where time decides, schedules keep no step with epochs.
        shift = 0 if config.minutes else schedule_step - start
        last = setup.total_steps - shift
        # At that step itself the command has ended, and may be given again.
        if 0 < config.stop_at_step < start:
            raise UserError(
                f"stop_at_step={config.stop_at_step} is before step {start}, from whose checkpoint"
                f" the run goes on; use a step from {start} to {last}, or 0 for the last"
            )
        return cls(
            start=start,
            last=last,
            stop=config.stop_at_step,
            shift=shift,
            steps_per_epoch=setup.steps_per_epoch,
            log_every=config.log_every,
            score_every=config.monitor_every * setup.steps_per_epoch,
            save_every=checkpoint.interval(config.checkpoint_every, setup.steps_per_epoch),
        )

    @property
    def end(self) -> int:
        """The step at which this command ends."""
        return min(self.stop or self.last, self.last)

    @property
    def epochs(self) -> float:
        """How many epochs the run has."""
        return self.epoch(self.last)

    def epoch(self, step: int) -> float:
        """Return how many epochs are over after `step`."""
        return (step + self.shift) / self.steps_per_epoch

    def logs(self, step: int) -> bool:
        """Return whether the numbers of the steps up to `step` are logged after it."""
        return step % self.log_every == 0 or step == self.end

    def scores(self, step: int) -> bool:
        """Return whether the encoder is scored after `step`."""
        whole = self.score_every > 0 and (step + self.shift) % self.score_every == 0
        return whole or (self.score_every > 0 and step == self.last)

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is written after `step` in any case."""
        return step % self.save_every == 0 or step == self.end
