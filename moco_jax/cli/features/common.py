"""Shared by embedding and search: how JAX starts."""

from absl import logging

from moco_jax import config as config_lib
from moco_jax.inference import trained_encoder
from moco_jax.parallel.devices import set_up


def prepare(place: str | None) -> None:
    """Silence logs, and set up JAX as the run in `place` says, if there is one."""
    is_run = place is not None and trained_encoder.is_run(place)
    config = trained_encoder.read_config(place) if place and is_run else config_lib.default_config()
    set_up(config, own=False)
    logging.set_verbosity(logging.ERROR)
