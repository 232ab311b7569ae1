"""What the hosts of one run find, as one list that process 0 prints; every host calls all of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moco_jax.base.findings import FAULT, OK, WARNING, Finding
from moco_jax.parallel import hosts

SLOW = 0.8  # share of the median rate below which a host is called slow


def require_one_command(config: ConfigDict, flags: Mapping[str, Any]) -> list[Finding]:
    """Find that all hosts have the same settings, versions and code; nothing for one process.

    `flags`: others that decide what is examined, by name.

    Raises:
        UserError: they differ.
    """
    if hosts.is_alone():
        return []
    hosts.require_agreement({**hosts.facts_of(config), **flags})
    return [Finding(OK, f"{hosts.count()} processes have the same settings, versions and code")]


def findings(own: Sequence[Finding]) -> list[Finding]:
    """Return process 0's findings, and after them what other hosts find that is worse.

    `own`: findings of this host, the same number and order on every host.
    """
    if hosts.is_alone():
        return list(own)
    said = hosts.gather([(one.severity, one.seen, one.details) for one in own])
    found = [Finding(severity, seen, tuple(details)) for severity, seen, details in said[0]]
    worse: dict[tuple[int, str], list[int]] = {}
    for number, listed in enumerate(said):
        for place, (severity, *_) in enumerate(listed):
            known = said[0][place][0] if place < len(said[0]) else OK
            if severity in (WARNING, FAULT) and known not in (severity, FAULT):
                worse.setdefault((place, severity), []).append(number)
    for (place, severity), numbers in worse.items():
        _, seen, details = said[numbers[0]][place]
        also = f" (and {len(numbers) - 1} others)" if len(numbers) > 1 else ""
        found.append(Finding(severity, f"process {numbers[0]}{also}: {seen}", tuple(details)))
    return found


def of_process(number: int, own: Finding) -> Finding:
    """Return what the host `number` finds; `own` is what this one does."""
    if hosts.is_alone():
        return own
    severity, seen, details = hosts.gather((own.severity, own.seen, own.details))[number]
    return Finding(severity, f"process {number}: {seen}", tuple(details))


def slowest(rates: Sequence[float]) -> tuple[int, list[Finding]]:
    """Find the host that makes the fewest view pairs a second, by the `rates` of all.

    Returns: its number, and a finding where there are several hosts.
    """
    slow, middle = int(np.argmin(rates)), float(np.median(rates))
    if len(rates) == 1:
        return 0, []
    text = (
        f"{len(rates)} hosts make {min(rates):,.3g} to {max(rates):,.3g} view pairs a second each,"
        f" process {slow} the fewest"
    )
    if rates[slow] >= SLOW * middle:
        return slow, [Finding(OK, text)]
    return slow, [
        Finding(
            WARNING,
            f"{text}, against {middle:,.3g} (median), and all wait for it: look at its disk, its"
            " network and what else runs on it",
        )
    ]
