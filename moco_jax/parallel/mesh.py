"""Devices as one mesh with a single axis, `data`, and how arrays lie on it.

All sharding of the project is decided here: images and queue by their batch axis, everything else
whole on every device. A program on one device is the same program with a mesh of one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"


def create_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Make a mesh of all devices of all hosts (or of `devices`) on one axis, slice after slice."""
    return Mesh(np.asarray(by_slice(jax.devices() if devices is None else devices)), (AXIS,))


def by_slice(devices: list[jax.Device]) -> list[jax.Device]:
    """Return the devices so that those of one slice are neighbours; within it JAX's order stays.

    A slice is a set of TPU chips with a fast network of their own. Neighbours exchange images for
    shuffled BatchNorm, which then stay within the slice. Devices that name no slice keep their
    order.
    """
    return sorted(devices, key=lambda device: getattr(device, "slice_index", 0))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the layout of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the layout of an array that is divided over the devices along `axis`."""
    return NamedSharding(mesh, P(*[None] * axis, AXIS))


def replicate(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Require, inside jit, `x` whole on every device; without a mesh nothing happens."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, replicated(mesh))


def divide(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Require, inside jit, `x` divided over devices by its first axis; no mesh, no effect."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, sharded(mesh))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return the rows of the global batch that this host holds, ascending, int64 `[n]`."""
    slices = sharded(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[s] for s in slices if s is not None]))


def to_every_device(mesh: Mesh, arrays: Any) -> Any:
    """Copy arrays that each host has whole to global arrays that each device has whole."""
    layout = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, layout, lambda _: x), arrays
    )


def divided(mesh: Mesh, x: np.ndarray, axis: int = 0) -> jax.Array:
    """Divide an array that each host has whole over all devices, along `axis`."""
    layout = sharded(mesh, axis)
    return jax.make_array_from_callback(x.shape, layout, lambda place: x[place])


@functools.cache
def _gather(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda arrays: arrays, out_shardings=replicated(mesh))


def to_hosts(mesh: Mesh, arrays: Any) -> Any:
    """Gather global arrays, however they are laid out, to NumPy arrays on each host.

    Every host must call this.
    """
    return jax.device_get(gathered(mesh, arrays))


def gathered(mesh: Mesh, arrays: Any) -> Any:
    """Gather global arrays, however they are laid out, to every device; this does not wait.

    Every host must call this.
    """
    return _gather(mesh)(arrays)


def to_devices(mesh: Mesh, rows: Any) -> Any:
    """Join each host's rows `[n, ...]` to global arrays `[B, ...]`, divided over the batch axis."""
    layout = sharded(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(layout, x), rows)
