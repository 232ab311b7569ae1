"""A picture of a run's first images beside the views that are drawn of them."""

from typing import Any

import numpy as np
from etils import epath

from moco_jax.base import figures, packages
from moco_jax.base.errors import UserError
from moco_jax.data import images, labelled_views, order
from moco_jax.data.damaged import DamagedImages
from moco_jax.data.sources import Source, refusals
from moco_jax.data.views import recipes

PAIRS = 8
Rows = dict[str, Any]


def first_pairs(
    source: Source,
    recipe: recipes.Recipe,
    *,
    seed: int,
    batch_size: int,
    workers: int,
    augment_on: str,
    scaled_decoding: bool = False,
) -> Rows:
    """Make the first view pairs of a run on `source`, as `train_batches` yields them.

    Where the host does not make the run's views, or cannot, being without TensorFlow, PIL crops
    and JAX does the rest.

    Raises:
        UserError: none of the images can be decoded.
    """
    rows = np.arange(min(PAIRS, batch_size))
    if augment_on == "resident" or not packages.is_there("tensorflow"):
        return _without_tensorflow(source, recipe, seed, batch_size, rows)
    packages.load_tensorflow("a picture of views")
    from moco_jax.data import pipeline

    batches = pipeline.train_batches(
        source,
        recipe,
        seed=seed,
        batch_size=batch_size,
        rows=rows,
        examples_seen=0,
        workers=workers,
        damaged=DamagedImages(len(source)),
        scaled_decoding=scaled_decoding,
    )
    return next(batches)


def _without_tensorflow(
    source: Source, recipe: recipes.Recipe, seed: int, batch_size: int, rows: np.ndarray
) -> Rows:
    """Make `rows` of the first batch; the next sound image stands in for a damaged one."""
    total = len(source)
    epoch, positions = order.batch_positions(0, batch_size, total)
    indices, pictures = order.permute(positions[rows], total, seed, epoch), []
    for row, first in enumerate(indices.tolist()):
        for index in (np.arange(first, first + total) % total).tolist():
            picture = images.decode(source, source.read(np.asarray([index]))[0])
            if picture is not None:
                break
        else:
            raise refusals.none_is_sound(total, source.name(first))
        indices[row] = index
        pictures.append(picture)
    views = [
        labelled_views.finish(
            [
                labelled_views.draw_and_crop(picture, index, epoch, seed, recipe, number)
                for picture, index in zip(pictures, indices.tolist(), strict=True)
            ],
            recipe,
        )
        for number in (0, 1)
    ]
    return {"query": views[0], "key": views[1], "index": indices.astype(np.int32)}


def draw(path: epath.Path, source: Source, batch: Rows) -> None:
    """Draw the views in `batch` to the file `path`; UserError where it cannot be written."""
    decoded = (images.decode(source, record) for record in source.read(batch["index"]))
    pictures = [picture for picture in decoded if picture is not None]  # views were drawn of all
    pairs = np.stack([batch["query"], batch["key"]], axis=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figures.view_pairs(path, pictures, pairs)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); make room, or make its folder writable"
        ) from error
