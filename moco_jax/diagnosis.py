"""What the records of a run say of it: rules that turn them into findings, each with its meaning and what to change.

`examine` is pure and needs nothing but a workdir's two files: the records of `metrics.jsonl`, and facts that follow
from `config.json` and the number of images (the event `began` of the records). docs/troubleshooting.md has the same
rules by symptom.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from moco_jax import checkpoint, encoders
from moco_jax import config as config_lib
from moco_jax.checks.findings import FAULT, NOTE, WARNING
from moco_jax.clock import MUCH_WAITING
from moco_jax.data import order, recipes
from moco_jax.method import Method
from moco_jax.report import writers

Record = Mapping[str, Any]

COLLAPSED = 0.1  # spread; healthy runs of every method were above 0.25, collapsed ones below 0.06
CHANCE = 0.98  # of the chance level: a run that learns is below it once warm; collapsed ones were above 0.99
RISE = 0.02  # of the chance level: a rise that a person sees in the progress line
LOST = 0.1  # of the chance level: a rise that is none of chance; healthy runs rose by 0.02
BEGIN = 0.1  # share of a run in which nothing is concluded from its loss
FAIR = 0.5  # share of a run after which its kNN accuracy should say something
RECENT = 0.05  # share of the steps so far over which a present state must have held
LOGS = 3  # records at least over which it must have held
QUEUES = 4  # times that a queue (or the memory bank) is renewed before its beginning is over
EASY = 0.9  # contrastive top-1; healthy runs of the default recipes ended between 0.15 and 0.8
SOLVED = 0.98  # contrastive top-1; without shuffled BN MoCo v1's reached 0.999 (appendix)
KNN_NOISE = 0.02  # of kNN accuracy: two standard errors of 500 queries at 75 %
KNN_LOST = 0.05  # of kNN accuracy: a fall that is no noise
STUCK = 0.25  # share of a run without a better kNN
SPIKES = 5  # events in SPIKES_WITHIN steps; healthy runs had one in a thousand
SPIKES_WITHIN = 100
SLOW_MOMENTUM = 0.99  # MoCo v1, table: 0.99 to 0.9999 work, 0.9 is worse, 0 fails


@dataclasses.dataclass(frozen=True)
class Facts:
    """What must be known of a run to read its records.

    Attributes:
        method: who encodes keys, where negatives come from, which loss.
        batch_size: B.
        chance: the loss of queries that are as close to every key; None for 'nce'.
        images: in the dataset; 0 where it is not known.
        total_steps: of the whole run; 0 where it is not known.
        warmup_steps: in which the learning rate rises.
        renewed_steps: in which every entry of the queue, or of the memory bank, is renewed; 0 without either.
        momentum: m of the momentum encoder.
        lr: the learning rate at the start of the schedule.
        batch_norm: whether the backbone has BatchNorm.
        augment: name of the views' recipe.
        changes_colours: whether views change colours, or images have none.
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
    batch_norm: bool
    augment: str
    changes_colours: bool

    @property
    def begun(self) -> int:
        """The step after which the loss says something: dictionary renewed, learning rate up, a tenth of the run gone."""
        renewed = QUEUES * self.renewed_steps
        return max(renewed, self.warmup_steps + round(BEGIN * self.total_steps))

    @property
    def leaks(self) -> bool:
        """Whether BatchNorm's statistics can tell a query's own key from its negatives (MoCo v1, section 3.3)."""
        method = self.method
        if not self.batch_norm or method.key_encoder == "none":
            return False
        groups = method.bn_groups
        open_ = method.shuffle == "none" or min(groups, method.shuffle_groups) == 1
        # In one group that holds all queries, keys and negatives (MoCo v3) the statistics are everyone's.
        return open_ and not (method.dictionary == "batch" and groups == 1)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that the records show.

    Attributes:
        name: of the rule, as in docs/troubleshooting.md.
        severity: 'note' (good to know), 'warning' (the run goes on, worse than it could), 'fault' (it learns nothing).
        since_step: the step at which it began.
        seen: what the records say, a sentence.
        meaning: what that means, a sentence or two.
        change: what to do, a sentence or two.
    """

    name: str
    severity: str
    since_step: int
    seen: str
    meaning: str
    change: str

    @property
    def text(self) -> str:
        """The finding in two lines for a console."""
        return f"{self.severity}: {self.seen} {self.meaning}\n  -> {self.change}"


def facts_of(config: Mapping[str, Any], images: int | None = None) -> Facts:
    """The facts of a run from its settings (as in `config.json`, or a config) and its number of images, if known."""
    settings = config_lib.default_config()
    settings.update({k: v for k, v in dict(config).items() if k in settings})
    method, batch = config_lib.method_of(settings), settings.batch_size
    per_epoch = order.steps_per_epoch(images, batch) if images else 0
    renewed = {"queue": -(-settings.queue_size // (batch * (1 + settings.symmetric))), "memory_bank": per_epoch}  # fmt: skip
    stages = recipes.create(settings.augment, settings.image_size, None, settings.channels).stages
    return Facts(
        method=method,
        batch_size=batch,
        chance=method.chance_level(batch),
        images=images or 0,
        total_steps=settings.epochs * per_epoch,
        warmup_steps=settings.warmup_epochs * per_epoch,
        renewed_steps=renewed.get(settings.dictionary, 0),
        momentum=settings.momentum,
        lr=config_lib.peak_learning_rate(settings),
        batch_norm=encoders.has_batch_norm(settings.arch),
        augment=settings.augment,
        changes_colours=settings.channels != 3 or any(s in recipes.COLOURS for s in stages),
    )


def of_workdir(workdir: epath.Path) -> list[Finding]:
    """The findings of the run in `workdir`, from its two files alone."""
    records = writers.records(workdir)
    config = checkpoint.read_config(workdir / "config.json")
    return examine(records, facts_of(config, images_of(records)))


def images_of(records: Iterable[Record]) -> int | None:
    """The number of images that the records' last event `began` has; None without one."""
    found = [r["images"] for r in records if r.get("event") == "began"]
    return found[-1] if found else None


class Course:
    """The records of a run sorted by kind, oldest first.

    Attributes:
        logs: those with a finite loss.
        scores: the monitor's, after step 0.
        untrained, raw: kNN accuracy of the encoder before training and of raw pixels; None where not known.
        events: what happened.
        last: the step of the last record.
    """

    def __init__(self, records: Sequence[Record]):
        """Sort them."""
        self.events = [r for r in records if "event" in r]
        self.logs = [r for r in records if math.isfinite(r.get("loss", math.nan))]
        scores = [r for r in records if "feature_spread" in r]
        self.scores = [r for r in scores if r["step"] > 0]
        before = [r["knn"] for r in scores if r["step"] == 0 and "knn" in r]
        self.untrained: float | None = before[0] if before else None
        self.raw: float | None = next((r["raw_knn"] for r in records if "raw_knn" in r), None)
        self.last: int = records[-1]["step"] if records else 0

    def recent(self, begin: int) -> list[Record]:
        """The last logs after step `begin` that speak of the present; empty where they are too few."""
        since = min(self.last * (1 - RECENT), *(r["step"] for r in self.logs[-LOGS:]), math.inf)
        found = [r for r in self.logs if r["step"] >= since and r["step"] > begin]
        return found if len(found) >= LOGS else []

    @property
    def knn(self) -> list[tuple[int, float]]:
        """Step and kNN accuracy of each score that has one, after step 0."""
        return [(r["step"], r["knn"]) for r in self.scores if "knn" in r]


Rule = Callable[[Course, Facts], Finding | None]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    """Register `function` as a rule."""
    RULES.append(function)
    return function


def examine(records: Sequence[Record], facts: Facts) -> list[Finding]:
    """What `records`, in the order of `metrics.jsonl`, show of the run with these `facts`; at most one of each name."""
    course = Course(records)
    found = (check(course, facts) for check in RULES)
    return [finding for finding in found if finding]
