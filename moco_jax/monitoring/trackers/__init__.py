"""Trackers: a run's records in Weights & Biases, MLflow or Trackio as well."""
