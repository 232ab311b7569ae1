"""Several processes as one run: joining them, and making sure that they agree."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import flax
import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from moco_jax.base import digests
from moco_jax.base.errors import UserError

T = TypeVar("T")


def start_hosts(
    distributed: bool, coordinator: str, num_processes: int, process_id: int, asks_for_stops: bool
) -> None:
    """Join the processes of one run, before anything else asks for devices.

    Args:
        distributed: the platform knows the addresses (Cloud TPU, GKE, Slurm).
        coordinator: else HOST:PORT of process 0; empty for a run of one process.
        num_processes: how many there are.
        process_id: which of them this is, from 0.
        asks_for_stops: whether SIGTERM is left to JAX's preemption service, because the program
            asks it after every step; else SIGTERM ends the process.
    """
    jax.config.update("jax_enable_preemption_service", asks_for_stops)
    if num_processes > 1 and not coordinator:
        raise UserError(
            f"--num_processes={num_processes} needs --coordinator=HOST:PORT, the address of "
            "process 0"
        )
    if coordinator:
        if not 0 <= process_id < num_processes:
            raise UserError(
                f"--process_id={process_id} is not below --num_processes={num_processes}; ids "
                "count from 0"
            )
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif distributed:
        jax.distributed.initialize()


def require_agreement(facts: Mapping[str, Any]) -> None:
    """Refuse to go on unless every process of the run has the same `facts`, JSON values by name.

    Raises:
        UserError: the facts that differ; on every process.
    """
    if jax.process_count() == 1:
        return
    names = sorted(facts)
    words = [hashlib.sha256(json.dumps(facts[n]).encode()).digest()[:4] for n in names]
    own = np.frombuffer(b"".join(words), np.uint32)
    everyone = np.asarray(multihost_utils.process_allgather(own)).reshape(-1, len(names))
    differing = [
        n for n, column in zip(names, everyone.T, strict=True) if len(set(column.tolist())) > 1
    ]
    if differing:
        here = ", ".join(f"{n}={facts[n]!r}" for n in differing)
        raise UserError(
            f"the processes of this run differ in {', '.join(differing)} (process "
            f"{jax.process_index()} has {here}); start all of them with one command and one "
            "version of the code"
        )


def broadcast(value: T) -> T:
    """Return process 0's `value`, made of JSON, on every process; every process must call this.

    What the other processes give does not matter. Tuples arrive as lists.
    """
    if jax.process_count() == 1:
        return value
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(own), np.int32)))
    sent = multihost_utils.broadcast_one_to_all(np.resize(own, length))
    return json.loads(np.asarray(sent).astype(np.uint8).tobytes())


def facts_of(config: ConfigDict) -> dict[str, Any]:
    """Collect what every host of a run must have alike: settings, code and library versions."""
    own = ("data_dir", "workers", "compilation_cache")
    versions = {m.__name__: m.__version__ for m in (flax, jax, optax)}
    settings = {k: v for k, v in config.to_dict().items() if k not in own}
    return {**settings, **versions, "code": code_digest()}


def code_digest() -> str:
    """Return the SHA-256 of this package's Python files, in hexadecimal."""
    package = Path(__file__).parents[1]
    return digests.of_files(sorted(package.rglob("*.py")))
