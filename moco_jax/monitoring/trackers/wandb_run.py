"""A run in Weights & Biases: numbers and pictures by step, settings, events as a table.

Its own variables decide all else, as WANDB_MODE=offline and WANDB_PROJECT do. W&B cannot be asked
what a run has of each step, least of all offline: that is noted beside W&B's files of the run.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from moco_jax.monitoring.trackers.items import NUMBERS, PICTURE
from moco_jax.monitoring.trackers.told import Told

NOTES = "sent.json"


class Run:
    """A run of the package wandb. Its steps are those of training, and never go back."""

    def begin(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Open the run, as of `child.Run`."""
        self._told, self._sent = Told(), dict[str, int]()
        stored = (about["run"] or {}).get("id")
        settings: dict[str, Any] = {"silent": True, "console": "off"}
        if "x_stats_pid" in wandb.Settings.model_fields:
            settings["x_stats_pid"] = os.getppid()  # the load of the machine by the run, not by us
        run = self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or about["project"],
            name=os.environ.get("WANDB_NAME") or about["name"],
            id=stored,
            resume="allow",
            dir=None if "WANDB_DIR" in os.environ else about["folder"],
            settings=wandb.Settings(**settings),
        )
        run.config.update(about["settings"], allow_val_change=True)
        # Without the server nobody knows what a run has; with it there is no doubt.
        went_on = stored is not None and bool(run.offline or run.resumed)
        self._folder = os.path.dirname(run.dir)
        known = self._notes() if went_on else {}
        # A row behind the last one is refused.
        self._step = run.starting_step if run.resumed else 1 + max(known.values(), default=-1)
        place = f"offline in {self._folder}" if run.offline else run.url
        return {
            "run": {"id": run.id},
            "went_on": went_on,
            "where": f"{'goes on with' if went_on else 'new'} run {run.id}, {place}",
            "sent": known,
        }

    def _notes(self) -> dict[str, int]:
        """Return the last step of each thing that earlier parts of the run noted here."""
        steps: dict[str, int] = {}
        for path in Path(self._folder).parent.glob(f"*-{self._run.id}/{NOTES}"):
            for name, step in json.loads(path.read_text()).items():
                steps[name] = max(step, steps.get(name, -1))
        return steps

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add numbers at `step`."""
        self._log(step, dict(scalars))
        self._sent |= {f"{NUMBERS}/{name}": step for name in scalars}

    def write_event(self, step: int, event: Mapping[str, Any]) -> None:
        """Add an event; findings are in the summary of the run as well."""
        self._told.add(step, event)
        if event["name"].startswith("finding/"):
            self._run.summary[event["name"]] = f"step {step}: {event['text']}"

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Add pictures of PIL at `step`."""
        self._log(step, {name: wandb.Image(image) for name, image in images.items()})
        self._sent |= {f"{PICTURE}/{name}": step for name in images}

    def flush(self) -> None:
        """Send the table of events, if it is time, and note what is sent."""
        self._send_events(at_once=False)
        if os.path.isdir(self._folder):  # with WANDB_MODE=disabled there is none
            (notes := Path(self._folder) / f"{NOTES}.part").write_text(json.dumps(self._sent))
            notes.replace(notes.with_suffix(""))

    def _log(self, step: int, row: dict[str, Any]) -> None:
        self._step = max(self._step, step)
        self._run.log(row, step=self._step)

    def _send_events(self, at_once: bool) -> None:
        if self._told.due(at_once):
            rows = [list(row) for row in self._told.rows]
            self._log(self._step, {"events": wandb.Table(["step", "event", "text"], rows)})

    def close(self, failed: bool) -> None:
        """Send what is left, and finish the run."""
        self._send_events(at_once=True)
        self._run.finish(exit_code=int(failed))
