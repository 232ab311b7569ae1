"""A run in MLflow: metrics by step, settings as params, events as a text and findings as tags.

Its own variables decide all else, as MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME do.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import Metric, Param

from moco_jax.monitoring.trackers.items import NUMBERS
from moco_jax.monitoring.trackers.told import Told

METRICS, PARAMS = 1000, 100  # that MLflow takes in one request
LONGEST = 5000  # characters of a tag


class Run:
    """A run of the package mlflow."""

    def begin(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Open the run, as of `child.Run`."""
        self._told, self._metrics = Told(), list[Metric]()
        self._client = mlflow.MlflowClient()
        stored = (about["run"] or {}).get("id")
        went_on = stored is not None and self._is_there(stored)
        if went_on:
            run = mlflow.start_run(run_id=stored)
        else:
            if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
                mlflow.set_experiment(about["project"])
            run = mlflow.start_run(run_name=about["name"])
        self._id = run.info.run_id
        self._set_settings(about["settings"])
        return {
            "run": {"id": self._id},
            "went_on": went_on,
            "where": f"{'goes on with' if went_on else 'new'} run {self._id}, experiment "
            f"{run.info.experiment_id} of {mlflow.get_tracking_uri()}",
            "sent": self._sent() if went_on else {},
        }

    def _is_there(self, run_id: str) -> bool:
        try:
            return self._client.get_run(run_id).info.lifecycle_stage == "active"
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _sent(self) -> dict[str, int]:
        """Return the last step of each metric that the run has."""
        names = self._client.get_run(self._id).data.metrics
        steps = {
            name: [metric.step for metric in self._client.get_metric_history(self._id, name)]
            for name in names
        }
        return {f"{NUMBERS}/{name}": max(found) for name, found in steps.items() if found}

    def _set_settings(self, settings: Mapping[str, Any]) -> None:
        """Set params; one that has another value by now becomes a tag, as params never change."""
        known = self._client.get_run(self._id).data.params
        written = {name: str(value) for name, value in settings.items()}
        new = [Param(name, value) for name, value in written.items() if name not in known]
        for first in range(0, len(new), PARAMS):
            self._client.log_batch(self._id, params=new[first : first + PARAMS])
        for name, value in written.items():
            if known.get(name, value) != value:
                self._client.set_tag(self._id, f"changed.{name}", value[:LONGEST])

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add numbers at `step`."""
        now = int(1000 * time.time())
        self._metrics += [Metric(name, float(v), now, step) for name, v in scalars.items()]

    def write_event(self, step: int, event: Mapping[str, Any]) -> None:
        """Add an event; findings are tags of the run as well."""
        self._told.add(step, event)
        if event["name"].startswith("finding/"):
            tag, text = event["name"].replace("/", "."), f"step {step}: {event['text']}"
            self._client.set_tag(self._id, tag, text[:LONGEST])

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Add pictures of PIL at `step`."""
        for name, image in images.items():
            self._client.log_image(self._id, image, key=name, step=step)

    def flush(self) -> None:
        """Send the metrics that are held back, and the events if it is time."""
        for first in range(0, len(self._metrics), METRICS):
            self._client.log_batch(self._id, metrics=self._metrics[first : first + METRICS])
        self._metrics = []
        self._send_events(at_once=False)

    def _send_events(self, at_once: bool) -> None:
        if self._told.due(at_once):
            lines = [f"step {step}  {name}  {text}\n" for step, name, text in self._told.rows]
            self._client.log_text(self._id, "".join(lines), "events.txt")

    def close(self, failed: bool) -> None:
        """Send what is left, and end the run."""
        self.flush()
        self._send_events(at_once=True)
        mlflow.end_run("FAILED" if failed else "FINISHED")
