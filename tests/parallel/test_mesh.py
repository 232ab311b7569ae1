"""The order of devices in the mesh."""

from dataclasses import dataclass

from moco_jax.parallel import mesh


@dataclass(frozen=True)
class Device:
    id: int


@dataclass(frozen=True)
class Chip(Device):
    slice_index: int


def order(devices):
    return [device.id for device in mesh.create_mesh(devices).devices]


def test_devices_of_one_slice_are_neighbours():
    """The network between slices is slow: neighbours exchange images for shuffled BatchNorm."""
    assert order([Chip(i, slice_index=i % 2) for i in range(6)]) == [0, 2, 4, 1, 3, 5]


def test_devices_without_slices_keep_their_order():
    assert order([Device(i) for i in (2, 0, 1)]) == [2, 0, 1]
