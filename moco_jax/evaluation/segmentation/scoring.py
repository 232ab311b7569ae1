"""Intersection over union of an FCN at the full size of each image."""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from moco_jax.evaluation.decide import decide
from moco_jax.evaluation.segmentation import fcn
from moco_jax.evaluation.segmentation.data import IGNORED, Scenes
from moco_jax.evaluation.segmentation.views import InputSettings, ahead
from moco_jax.method.encoding import to_network_input
from moco_jax.parallel import mesh as mesh_lib

# sides are padded to a multiple, so that few shapes are compiled; a multiple of all strides
# together
UNIT = 128


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels of each class (rows) that are taken for each class (columns).

    int64 `[K, K + 1]`; ignored pixels do not count. The last column is of those for which no
    class was decided: a class beyond `classes`.
    """
    counted, columns = labels != IGNORED, classes + 1
    pairs = labels[counted].astype(np.int64) * columns + np.minimum(predicted[counted], classes)
    return np.bincount(pairs, minlength=classes * columns).reshape(classes, columns)


def intersection_over_union(counts: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of each class, from `confusion`: float64 `[K]`.

    NaN for a class that is neither there nor predicted.
    """
    common = np.diag(counts)
    union = counts.sum(0)[: len(counts)] + counts.sum(1) - common
    return np.divide(common, union, out=np.full(len(counts), np.nan), where=union > 0)


def _groups(sizes: np.ndarray, unit: int, rows: int) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Group the images by the shape that they are padded to, at most `rows` in a group."""
    padded = -(-sizes // unit) * unit
    for shape in np.unique(padded, axis=0):
        some = np.flatnonzero((padded == shape).all(1)).tolist()
        for start in range(0, len(some), rows):
            yield (int(shape[0]), int(shape[1])), some[start : start + rows]


@functools.cache
def _make_predict(
    network: fcn.FCN, mean: tuple[float, ...], std: tuple[float, ...], mesh: Mesh
) -> Callable:
    """Compile the prediction of each pixel's class.

    It goes from variables, padded uint8 images `[B, H, W, C]` and sizes int32 `[B, 2]` to
    classes uint8 `[B, H, W]`; 254 for none.
    """

    def predict(variables: Any, images: jax.Array, sizes: jax.Array) -> jax.Array:
        inputs = to_network_input(images, mean, std, network.backbone.dtype)
        logits = fcn.apply_padded(network, variables, inputs, sizes)
        return decide(fcn.resize(logits, images.shape[1:3], sizes)).astype(np.uint8)

    everywhere, divided = mesh_lib.replicated(mesh), mesh_lib.sharded(mesh)
    return jax.jit(predict, in_shardings=(everywhere, divided, divided), out_shardings=everywhere)


def score(
    network: fcn.FCN,
    variables: Any,
    scenes: Scenes,
    mesh: Mesh,
    inputs: InputSettings,
    report: Callable[[str], None],
    unit: int = UNIT,
) -> np.ndarray:
    """Compute the confusion int64 `[K, K + 1]` of all images in `scenes`, each at its own size.

    A device takes one image at a time. Each host reads the images that its devices take, and all
    labels.

    Args:
        network, variables: the FCN.
        scenes: the images.
        mesh: the devices.
        inputs: how images are read and normalised.
        report: called with a line on how far it is.
        unit: sides are padded to multiples of it; itself a multiple of all strides together.
    """
    classes, rows = len(scenes.classes), mesh.size
    predict = _make_predict(network, inputs.mean, inputs.std, mesh)
    variables = jax.device_put(variables, mesh_lib.replicated(mesh))
    own = mesh_lib.local_rows(mesh, rows)

    def read(group: tuple[tuple[int, int], list[int]]) -> tuple[np.ndarray, np.ndarray, list]:
        shape, indices = group
        sizes = np.ones((rows, 2), np.int32)
        sizes[: len(indices)] = scenes.sizes[indices]
        images = np.zeros((rows, *shape, scenes.decoding.channels), np.uint8)
        for row in own[own < len(indices)].tolist():
            image = scenes.image(indices[row])
            images[row, : image.shape[0], : image.shape[1]] = image
        return images[own], sizes[own], [scenes.label(index) for index in indices]

    counts, done = np.zeros((classes, classes + 1), np.int64), 0
    groups = list(_groups(scenes.sizes, unit, rows))
    for images, sizes, labels in ahead(read, groups, inputs.workers or os.cpu_count() or 1, 4):
        predicted = np.asarray(predict(variables, *mesh_lib.to_devices(mesh, (images, sizes))))
        for label, classified in zip(labels, predicted[: len(labels)], strict=True):
            height, width = label.shape
            counts += confusion(label, classified[:height, :width], classes)
        done += len(labels)
        report(f"tested on {scenes.about}: {done:,} of {len(scenes.pairs):,}")
    return counts
