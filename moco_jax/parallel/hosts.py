"""Several processes as one run: joining them, and making sure that all of them run the same thing."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from moco_jax.base.errors import UserError


def start_hosts(
    distributed: bool, coordinator: str, num_processes: int, process_id: int, asks_for_stops: bool
) -> None:
    """Join the processes of one run, before anything else asks for devices.

    Args:
        distributed: the platform knows the addresses (Cloud TPU, GKE, Slurm).
        coordinator: else HOST:PORT of process 0; empty for a run of one process.
        num_processes: how many there are.
        process_id: which of them this is, from 0.
        asks_for_stops: whether SIGTERM is left to JAX's preemption service, because the program asks it after every step;
            else SIGTERM ends the process.
    """
    jax.config.update("jax_enable_preemption_service", asks_for_stops)
    if num_processes > 1 and not coordinator:
        raise UserError(
            f"--num_processes={num_processes} needs --coordinator=HOST:PORT, the address of process 0"
        )
    if coordinator:
        if not 0 <= process_id < num_processes:
            raise UserError(
                f"--process_id={process_id} is not below --num_processes={num_processes}; ids count from 0"
            )
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif distributed:
        jax.distributed.initialize()


def require_agreement(facts: Mapping[str, Any]) -> None:
    """Refuse to go on unless every process of the run has the same `facts` (JSON values by name)."""
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
            f"the processes of this run differ in {', '.join(differing)} (process {jax.process_index()} has "
            f"{here}); start all of them with one command and one version of the code"
        )


def first_says(yes: bool) -> bool:
    """What process 0 says, on every host; all must ask."""
    if jax.process_count() == 1:
        return yes
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(yes)))


def first_tells(text: str) -> str:
    """The `text` of process 0, on every host; all must ask, and what the others give does not matter."""
    if jax.process_count() == 1:
        return text
    own = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(own), np.int32)))
    told = multihost_utils.broadcast_one_to_all(np.resize(own, length))
    return np.asarray(told).astype(np.uint8).tobytes().decode()


def first_gives(number: int) -> int:
    """The `number` of process 0, below 2**31, on every host; all must ask."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.asarray(number, np.int32)))


def facts_of(config: ConfigDict) -> dict[str, Any]:
    """What must be the same on every host of a run, by name: settings, code and library versions."""
    own = ("data_dir", "workers", "compilation_cache")
    versions = {m.__name__: m.__version__ for m in (flax, jax, optax)}
    settings = {k: v for k, v in config.to_dict().items() if k not in own}
    return {**settings, **versions, "code": code_digest()}


def code_digest() -> str:
    """SHA-256 of this package's Python files, in hexadecimal."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    return code.hexdigest()
