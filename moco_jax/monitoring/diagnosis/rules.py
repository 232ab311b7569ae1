"""Diagnoses a run: applies all rules to its records, and collects their findings.

A rule is a function of the history of a run and its facts; it returns a finding, with its meaning
and a change, or None. `examine` is pure and needs nothing but a workdir's two files: the records
of `metrics.jsonl`, and facts that follow from `config.json` and the number of images (in the event
`start` of the records). docs/troubleshooting.md has the same rules by symptom.
"""

from collections.abc import Callable, Sequence

from etils import epath

from moco_jax.base.findings import Finding
from moco_jax.monitoring import run_log
from moco_jax.monitoring.diagnosis import feature_rules, knn_rules, loss_rules
from moco_jax.monitoring.diagnosis.history import Facts, Record, RunHistory, facts_of, images_of
from moco_jax.workdir import recipe_check

__all__ = ["Facts", "Finding", "examine", "facts_of", "images_of", "of_workdir"]

Rule = Callable[[RunHistory, Facts], Finding | None]

# Findings are shown in this order.
RULES: tuple[Rule, ...] = (
    loss_rules.queue_filling,
    feature_rules.collapsed,
    loss_rules.spikes,
    knn_rules.leak,
    knn_rules.shortcut,
    loss_rules.starved,
    knn_rules.knn_falling,
    knn_rules.knn_stuck,
)
# A collapsed run breaks these as well, and they would only repeat what follows from the collapse.
RULES_UNLESS_COLLAPSED: tuple[Rule, ...] = (
    loss_rules.at_chance,
    loss_rules.loss_rising,
    feature_rules.drift,
    feature_rules.few_directions,
    knn_rules.below_pixels,
)


def of_workdir(workdir: epath.Path) -> list[Finding]:
    """Diagnose the run in `workdir` from its records and its settings."""
    records = run_log.records(workdir)
    return examine(records, facts_of(recipe_check.settings(workdir), images_of(records)))


def examine(records: Sequence[Record], facts: Facts) -> list[Finding]:
    """Apply the rules to the `records` of a run; return at most one finding of each name.

    Args:
        records: in the order of `metrics.jsonl`.
        facts: on the same run.
    """
    history = RunHistory(records)
    is_collapsed = feature_rules.collapsed(history, facts) is not None
    rules = RULES if is_collapsed else (*RULES, *RULES_UNLESS_COLLAPSED)
    findings = (rule(history, facts) for rule in rules)
    return [finding for finding in findings if finding]
