"""Labelled crops for training a classifier: every image once an epoch, in a new order."""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from moco_jax.data import labelled_views, order
from moco_jax.data.views import recipes
from moco_jax.evaluation.labelled import Labelled
from moco_jax.parallel import mesh as mesh_lib


def epoch_batches(
    images: Labelled,
    recipe: recipes.Recipe,
    mesh: Mesh,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    workers: int,
    start: int = 0,
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """Yield the batches of `epochs` epochs, ceil(N / B) in each, with new crops in every epoch.

    The last batch of an epoch is filled up with images that do not count. A damaged image does
    not count either; the pixels of a sound one of its batch stand in its place.

    Args:
        images: N of them.
        recipe: of the crops.
        mesh: the devices.
        epochs, batch_size: how many, and B, which divides over the devices.
        seed: of order and crops.
        workers: threads; 0 for as many as cores.
        start: how many batches to leave out at the beginning; they are not made.

    Yields:
        The epoch, and `image` uint8 `[B, S, S, C]`, `classes` int `[B]`, `present` bool `[B]`
        (whether a row counts), divided over the devices.
    """
    number, rows = len(images.indices), mesh_lib.local_rows(mesh, batch_size)
    steps = -(-number // batch_size)

    def places():
        for n in range(start, epochs * steps):
            epoch, step = divmod(n, steps)
            wanted = step * batch_size + rows
            positions = order.permute(wanted % number, number, seed, epoch)
            yield epoch, positions, wanted < number

    reads = ((epoch, images.indices[positions]) for epoch, positions, _ in places())
    views = labelled_views.view_batches(images.source, recipe, reads, len(rows), seed, workers)
    for made, (epoch, positions, counts) in zip(views, places(), strict=True):
        pixels, ok = made["image"], made["ok"]
        if not ok.all() and ok.any():
            pixels = pixels[np.where(ok, np.arange(len(ok)), ok.argmax())]
        arrays = {"image": pixels, "classes": images.classes[positions], "present": ok & counts}
        yield epoch, mesh_lib.to_devices(mesh, arrays)
