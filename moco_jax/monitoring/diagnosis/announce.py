"""Announces findings while a run goes on: each once, at the console and in the records."""

import dataclasses

from moco_jax.base.console import Console
from moco_jax.monitoring.diagnosis import rules
from moco_jax.monitoring.run_log import Writers

# Share by which the records have grown before they are examined again: examining them then costs
# next to nothing.
GROWTH = 0.02


class Announcer:
    """Examines a run's records as they grow, and announces each new finding.

    A host that does not write records has none, and keeps silent.
    """

    def __init__(self, console: Console, log: Writers, facts: rules.Facts):
        """Take from the records in `log` what was announced before; it is not announced again."""
        self.console, self.log, self.facts = console, log, facts
        events = [r for r in log.records if r.get("event") == "finding"]
        self._announced = {(r["name"], r["severity"]) for r in events}
        self._seen, self._broken = 0, False

    def consider(self, step: int, at_once: bool = False) -> None:
        """Examine the records up to `step`, if enough of them are new, or `at_once`."""
        number = len(self.log.records)
        # Where older records were thinned out there are fewer than before.
        enough = number != self._seen and abs(number - self._seen) >= GROWTH * number
        if self._broken or not (at_once or enough):
            return
        try:
            found = rules.examine(self.log.records, self.facts)
        except Exception as error:  # an opinion is not worth a run
            self._broken = True
            self.console.line(f"the diagnosis failed and is left out from here on: {error!r}")
            return
        for finding in found:
            if (finding.name, finding.severity) not in self._announced:
                self._announced.add((finding.name, finding.severity))
                self.console.line(finding.line)
                facts = dataclasses.asdict(finding)
                del facts["details"]  # only the doctor's findings have them
                self.log.event(step, "finding", facts)
        self._seen = len(self.log.records)
