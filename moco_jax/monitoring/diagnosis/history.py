"""A run as its diagnosis reads it: facts that follow from its settings, and sorted records."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moco_jax import config as config_lib
from moco_jax import encoders
from moco_jax.data import order
from moco_jax.data.configured import recipe_of, views_in_words
from moco_jax.data.views import recipes
from moco_jax.method.choice import Method
from moco_jax.method.configured import method_of, peak_learning_rate, queue_life

Record = Mapping[str, Any]

BEGIN = 0.1  # share of a run in which nothing is concluded from its loss
RECENT = 0.05  # share of the steps so far over which a present state must have held
LOGS = 3  # records at least over which it must have held
QUEUES = 4  # times that a queue is renewed before its beginning is over
# Share of a run with a memory bank, whose entries leave random vectors by halves, an epoch each;
# a sound run's spread may be below COLLAPSED in its first tenth.
BANKS = 0.3


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts of a run that its records are read with.

    Attributes:
        method: who encodes keys, where negatives come from, which loss.
        batch_size: B.
        chance: the loss of queries that are as close to every key; None for 'nce'.
        images: in the dataset; 0 where it is not known.
        total_steps: of the whole run; 0 where it is not known.
        warmup_steps: in which the learning rate rises.
        renewed_steps: in which every key of the queue, or entry of the memory bank, is renewed; 0
            without either.
        momentum: m of the momentum encoder.
        lr: the learning rate at the start of the schedule.
        optimizer: its name.
        weight_decay: as the optimizer has it.
        batch_norm: whether the backbone has BatchNorm.
        views: the settings of the views, as they are written.
        changes_colours: whether views change colours, or images have none.
        lr_drops: epochs of the run after which the learning rate falls by steps; none of a cosine.
    """

    method: Method
    batch_size: int
    chance: float | None
    images: int
    total_steps: int
    warmup_steps: int
    renewed_steps: int
    momentum: float
    lr: float
    optimizer: str
    weight_decay: float
    batch_norm: bool
    views: str
    changes_colours: bool
    lr_drops: tuple[float, ...]

    def of_length(self, steps: int) -> "Facts":
        """Return the facts where the run takes so many `steps`, and its schedules end with them."""
        if not self.total_steps:
            return self
        share = steps / self.total_steps
        return dataclasses.replace(
            self,
            total_steps=steps,
            warmup_steps=round(share * self.warmup_steps),
            lr_drops=tuple(share * drop for drop in self.lr_drops),
        )

    @property
    def begun(self) -> int:
        """The step after which the loss says something.

        By then the queue is renewed, the learning rate is up and a part of the run is over.
        """
        share = BANKS if self.method.dictionary == "memory_bank" else BEGIN
        renewed = QUEUES * self.renewed_steps
        return max(renewed, self.warmup_steps + round(share * self.total_steps))

    @property
    def leaks(self) -> bool:
        """Whether BatchNorm can tell a query's own key from its negatives.

        See MoCo v1, section 3.3.
        """
        method = self.method
        if not self.batch_norm or method.key_encoder == "none":
            return False
        groups = method.bn_groups
        open_ = method.shuffle == "none" or min(groups, method.shuffle_groups) == 1
        # In one group that holds all queries, keys and negatives (MoCo v3) the statistics are
        # everyone's.
        return open_ and not (method.dictionary == "batch" and groups == 1)


def facts_of(config: Mapping[str, Any], images: int | None = None) -> Facts:
    """Derive the facts of a run.

    Args:
        config: its settings, as in `config.json`; those that are not there have their defaults.
        images: in its dataset; None where it is not known.
    """
    settings = config_lib.default_config()
    settings.update({k: v for k, v in dict(config).items() if k in settings})
    method, batch = method_of(settings), settings.batch_size
    per_epoch = order.steps_per_epoch(images, batch) if images else 0
    bank = settings.dictionary == "memory_bank"
    stages = recipe_of(settings).stages
    return Facts(
        method=method,
        batch_size=batch,
        chance=method.chance_level(batch),
        images=images or 0,
        total_steps=settings.epochs * per_epoch,
        warmup_steps=round(settings.warmup_epochs * per_epoch),
        renewed_steps=per_epoch if bank else queue_life(settings),
        momentum=settings.momentum,
        lr=peak_learning_rate(settings),
        optimizer=settings.optimizer,
        weight_decay=settings.weight_decay,
        batch_norm=encoders.has_batch_norm(settings.arch),
        views=views_in_words(settings),
        changes_colours=settings.channels != 3 or any(s in recipes.COLOURS for s in stages),
        lr_drops=_drops(settings) if settings.lr_schedule == "steps" else (),
    )


def _drops(settings: Any) -> tuple[int, ...]:
    """List how many epochs are over when each of `lr_steps` within the run is reached."""
    over = (drop - settings.first_epoch for drop in settings.lr_steps)
    return tuple(epochs for epochs in over if 0 < epochs < settings.epochs)


def images_of(records: Iterable[Record]) -> int | None:
    """Return the number of images in the last event `start`; None without one."""
    found = [r["examples"] for r in records if r.get("event") == "start"]
    return found[-1] if found else None


class RunHistory:
    """The records of a run sorted by kind, oldest first.

    Attributes:
        logs: those with a finite loss.
        scores: the monitor's, after step 0.
        untrained, raw: kNN accuracy of the encoder before training and of raw pixels; None where
            not known.
        events: what happened.
        last: the step of the last record.
        starts: the steps at which the run began or went on.
        on_cpu: whether it ran on CPUs at its last start.
    """

    def __init__(self, records: Sequence[Record]):
        """Sort `records`, which are in order."""
        self.events = [r for r in records if "event" in r]
        self.logs = [r for r in records if math.isfinite(r.get("loss", math.nan))]
        scores = [r for r in records if "feature_spread" in r]
        self.scores = [r for r in scores if r["step"] > 0]
        before = [r["knn"] for r in scores if r["step"] == 0 and "knn" in r]
        self.untrained: float | None = before[0] if before else None
        self.raw: float | None = next((r["raw_knn"] for r in records if "raw_knn" in r), None)
        self.last: int = records[-1]["step"] if records else 0
        starts = [e for e in self.events if e["event"] == "start"]
        self.starts = {e["step"] for e in starts} or {0}
        self.on_cpu = bool(starts) and starts[-1].get("device_kind") == "cpu"

    def recent(self, begin: int) -> list[Record]:
        """Return the logs after step `begin` that show the present; none if too few."""
        since = min(self.last * (1 - RECENT), *(r["step"] for r in self.logs[-LOGS:]), math.inf)
        found = [r for r in self.logs if r["step"] >= since and r["step"] > begin]
        return found if len(found) >= LOGS else []

    @property
    def knn(self) -> list[tuple[int, float]]:
        """The step and kNN accuracy of each score that has one, after step 0."""
        return [(r["step"], r["knn"]) for r in self.scores if "knn" in r]
