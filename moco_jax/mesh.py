"""Devices and hosts as one mesh with a single axis, `data`, and how arrays lie on it.

All sharding of the project is decided here: images and queue by their batch axis, everything else whole on
every device. A program on one device is the same program with a mesh of one.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moco_jax.errors import UserError

AXIS = "data"


def start_hosts(distributed: bool, coordinator: str, num_processes: int, process_id: int) -> None:
    """Join the processes of one run, before anything else asks for devices.

    Args:
        distributed: the platform knows the addresses (Cloud TPU, GKE, Slurm).
        coordinator: else HOST:PORT of process 0; empty for a run of one process.
        num_processes: how many there are.
        process_id: which of them this is, from 0.
    """
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


def create_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices of all hosts (or of `devices`), in JAX's order, on the axis `data`."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The layout of an array that is divided over the devices along `axis`."""
    return NamedSharding(mesh, P(*[None] * axis, AXIS))


def replicate(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Inside jit: require `x` whole on every device (nothing happens without a mesh)."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, replicated(mesh))


def divide(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Inside jit: require `x` divided over the devices along its first axis (nothing happens without a mesh)."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, sharded(mesh))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The places int64 `[n]` in the global batch, ascending, that this host's devices hold."""
    slices = sharded(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[s] for s in slices if s is not None]))


def to_devices(mesh: Mesh, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays `[n, ...]` of this host's rows -> global arrays `[B, ...]` divided over the batch axis."""
    layout = sharded(mesh)
    return {k: jax.make_array_from_process_local_data(layout, v) for k, v in rows.items()}
