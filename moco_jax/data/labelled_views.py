"""Batches for evaluation and for training on labels, by tf.data or, without TensorFlow, by PIL.

tf.data calls no Python for an image, so that a host with many cores is as fast as its cores are.
PIL decodes and resizes in threads: the evaluation view needs nothing else, and of a drawn view JAX
draws the parameters and does what follows the crop, as for images that live on the devices.
"""

import functools
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from moco_jax.base import packages
from moco_jax.data import images
from moco_jax.data.sources import Source
from moco_jax.data.views import centre, device_views, pil_crop, recipes

Rows = dict[str, Any]
KEPT = 2**30  # bytes of views that a run which scores itself keeps in memory


def evaluation_batches(
    source: Source, recipe: recipes.Recipe, indices: np.ndarray, workers: int
) -> Generator[Rows, None, None]:
    """Yield the images `indices` int64 `[steps, n]` resized and cropped as for evaluation.

    Nothing is drawn. `workers`: threads; 0 for as many as cores.

    Yields:
        For each step `image` uint8 `[n, S, S, C]` and `ok` bool `[n]`, false where an image is
        damaged.
    """
    if packages.is_there("tensorflow"):
        yield from _tf_data().evaluation_batches(source, recipe, indices, workers)
        return
    side, size = recipe.evaluation_resize, recipe.image_size
    black = np.zeros((size, size, source.decoding.channels), np.uint8)

    def view(epoch: int, index: int, record: Any) -> tuple[np.ndarray, bool]:
        image = images.decode(source, record)
        return (black, False) if image is None else (centre.view(image, side, size), True)

    for made in images.stream(source, ((0, some) for some in indices), view, workers):
        views, ok = zip(*made, strict=True)
        yield {"image": np.stack(views), "ok": np.asarray(ok)}


class KeptViews:
    """Views that are made once, and then kept in memory if they are few.

    A run scores itself with the same images again and again, and decoding them may take longer
    than encoding their views.
    """

    def __init__(self, most: int = KEPT):
        """Keep at most so many bytes, all views together."""
        self._left = most
        self._kept: dict[Any, list[Rows]] = {}

    def batches(self, name: Any, make: Callable[[], Iterable[Rows]]) -> Generator[Rows, None, None]:
        """Yield the batches called `name`: those that were kept, or those that `make` makes."""
        if name in self._kept:
            yield from self._kept[name]
            return
        made: list[Rows] = []
        left = self._left
        for batch in make():
            left -= batch["image"].nbytes
            if left >= 0:
                made.append(batch)
            else:
                made.clear()
            yield batch
        if left >= 0:
            self._kept[name], self._left = made, left


def view_batches(
    source: Source,
    recipe: recipes.Recipe,
    reads: Iterable[tuple[int, np.ndarray]],
    rows: int,
    seed: int,
    workers: int,
) -> Generator[Rows, None, None]:
    """Yield one drawn view of each image, for training on labels.

    It is the query view of pretraining with this recipe and seed. `reads`: for each step the
    epoch and the images, int64 `[rows]`. `workers`: as in `evaluation_batches`.

    Yields:
        For each step `image` uint8 `[rows, S, S, C]` and `ok` bool `[rows]`, false where an image
        is damaged.
    """
    if packages.is_there("tensorflow"):
        yield from _tf_data().view_batches(source, recipe, reads, rows, seed, workers)
        return
    black = np.zeros((1, 1, source.decoding.channels), np.uint8)

    def view(epoch: int, index: int, record: Any) -> tuple[Crop, bool]:
        image = images.decode(source, record)
        found = black if image is None else image
        return draw_and_crop(found, index, epoch, seed, recipe, 0), image is not None

    draw_and_crop(black, 0, 0, seed, recipe, 0)  # compiled once, before threads need it
    for made in images.stream(source, reads, view, workers):
        crops, ok = zip(*made, strict=True)
        yield {"image": finish(crops, recipe), "ok": np.asarray(ok)}


def _tf_data() -> Any:
    """Return the module that makes the same batches by tf.data."""
    packages.load_tensorflow("tf.data")
    from moco_jax.data import pipeline

    return pipeline


class Crop(NamedTuple):
    """The crop of a view, uint8 `[S, S, C]`, and what was drawn for the view."""

    pixels: np.ndarray
    view: recipes.View


def draw_and_crop(
    image: np.ndarray, index: int, epoch: int, seed: int, recipe: recipes.Recipe, number: int
) -> Crop:
    """Draw view `number` (0: query, 1: key) of example `index` in `epoch`, and crop it.

    `image`: uint8 `[H, W, C]`, of any size.
    """
    height, width = image.shape[:2]
    # A few numbers: sent to an accelerator they would wait for its work.
    with jax.default_device(_processor()):
        example = np.asarray([epoch], np.int32), np.asarray([index], np.int32)
        drawn = _draw(seed, *example, height, width, recipe=recipe)[number]
    view = recipes.View(*(np.asarray(field)[0] for field in drawn))
    return Crop(pil_crop.crop(image, view.box, recipe.image_size), view)


def finish(crops: Sequence[Crop], recipe: recipes.Recipe) -> np.ndarray:
    """Apply to n crops what follows the crop, on JAX's default device: uint8 `[n, S, S, C]`."""
    views = recipes.View(*(np.stack(field) for field in zip(*(c.view for c in crops), strict=True)))
    return np.asarray(_finish(np.stack([crop.pixels for crop in crops]), views, recipe))


@functools.cache
def _processor() -> jax.Device | None:
    """Return the host's processor as a device; None where JAX was told to do without it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


_draw = jax.jit(device_views.draw_two_views, static_argnames=("seed", "recipe"))
_finish = jax.jit(device_views.finish, static_argnums=2)
