"""A run in Trackio: numbers and pictures by step, settings, events as alerts.

Its own variables decide all else, as TRACKIO_DIR, TRACKIO_SPACE_ID and TRACKIO_SERVER_URL do.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import trackio
from trackio.sqlite_storage import SQLiteStorage

from moco_jax.monitoring.trackers.items import EVENT, NUMBERS, PICTURE

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
LEVELS = {"note": "INFO", "warning": "WARN", "fault": "ERROR"}  # a finding's -> an alert's


class Run:
    """A run of the package trackio, which finds runs by name alone."""

    def begin(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Open the run, as of `child.Run`."""
        self._warned: list[str] = []
        self._project, self._is_local = about["project"], not any(map(os.environ.get, REMOTE))
        stored = about["run"] or {}
        name, went_on = stored.get("name", ""), False
        if stored:
            self._run = self._open(name, "allow", about)
            # A younger run may have the same name.
            went_on = self._run.id == stored["id"]
            if not went_on:
                self._run.finish()
        if not went_on:
            name = self._free(about["name"])
            self._run = self._open(name, "never", about)
        place = (
            "" if self._is_local else f" at {' '.join(filter(None, map(os.environ.get, REMOTE)))}"
        )
        warnings.showwarning = self._heard
        return {
            "run": {"id": self._run.id, "name": name},
            "went_on": went_on,
            "where": f"{'goes on with' if went_on else 'new'} run {name} of project "
            f"{self._project}{place}",
            "sent": self._sent() if went_on and self._is_local else {},
        }

    def _open(self, name: str, resume: str, about: Mapping[str, Any]) -> Any:
        settings = about["settings"]
        return trackio.init(self._project, name=name, resume=resume, config=settings, embed=False)

    def _free(self, name: str) -> str:
        """Return `name`, with a number behind it where a run of this machine has it already."""
        taken = set(SQLiteStorage.get_runs(self._project)) if self._is_local else set()
        numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
        return next(free for free in (name, *numbered) if free not in taken)

    def _sent(self) -> dict[str, int]:
        """Return the last step of all that the run has."""
        steps: dict[str, int] = {}
        for row in SQLiteStorage.get_logs(self._project, self._run.name, run_id=self._run.id):
            for name in row.keys() - {"step", "timestamp"}:
                kind = PICTURE if isinstance(row[name], dict) else NUMBERS
                steps[f"{kind}/{name}"] = max(row["step"], steps.get(f"{kind}/{name}", -1))
        for alert in SQLiteStorage.get_alerts(self._project, self._run.name, run_id=self._run.id):
            name = f"{EVENT}/{alert['title']}"
            steps[name] = max(alert["step"], steps.get(name, -1))
        return steps

    def _heard(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if os.path.dirname(filename) == os.path.dirname(trackio.__file__):
            self._warned.append(str(message))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add numbers at `step`."""
        self._run.log(dict(scalars), step=step)

    def write_event(self, step: int, event: Mapping[str, Any]) -> None:
        """Add an event, unless the run has it."""
        if event["new"]:
            level = trackio.AlertLevel[LEVELS.get(event["severity"], "WARN")]
            self._run.alert(event["name"], event["text"], level, step)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Add pictures of PIL at `step`."""
        self._run.log({name: trackio.Image(image) for name, image in images.items()}, step=step)

    def flush(self) -> None:
        """Raise what went wrong since the last time.

        Trackio warns of what it could not write, and goes on; what it could not send it keeps.
        """
        if self._is_local and self._warned:
            raise RuntimeError(self._warned[0])

    def close(self, failed: bool) -> None:
        """Write what is left, and finish the run."""
        self._run.finish()
        self.flush()
