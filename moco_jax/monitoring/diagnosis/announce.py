"""Tells what `diagnosis` finds while a run goes on: each finding once, at the console and in the records."""

import dataclasses

from moco_jax.base.console import Console
from moco_jax.monitoring.diagnosis import rules
from moco_jax.monitoring.run_log import Writers

GROWTH = 0.02  # share by which the records have grown before they are looked at again: then looking costs next to nothing


class Teller:
    """Examines a run's records as they grow; a host that does not write them has none, and keeps silent."""

    def __init__(self, console: Console, log: Writers, facts: rules.Facts):
        """What the records in `log` say was told before, is not told again."""
        self.console, self.log, self.facts = console, log, facts
        events = [r for r in log.held if r.get("event") == "finding"]
        self._told = {(r["name"], r["severity"]) for r in events}
        self._seen, self._broken = 0, False

    def consider(self, step: int, at_once: bool = False) -> None:
        """Examine what was recorded up to `step`, if there is enough that is new, or `at_once`."""
        number = len(self.log.held)
        # Where older records were thinned out there are fewer than before.
        enough = number != self._seen and abs(number - self._seen) >= GROWTH * number
        if self._broken or not (at_once or enough):
            return
        try:
            found = rules.examine(self.log.held, self.facts)
        except Exception as error:  # an opinion is not worth a run
            self._broken = True
            self.console.line(f"the diagnosis failed and is left out from here on: {error!r}")
            return
        for finding in found:
            if (finding.name, finding.severity) not in self._told:
                self._told.add((finding.name, finding.severity))
                self.console.line(finding.text)
                self.log.event(step, "finding", dataclasses.asdict(finding))
        self._seen = len(self.log.held)
