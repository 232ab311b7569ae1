"""A picture of a run's first images beside the views that are drawn of them.

Where JPEGs are shrunk in decoding, such views are also compared with the exact ones.
"""

import numpy as np
import tensorflow as tf
from etils import epath

from moco_jax.base import figures
from moco_jax.base.errors import UserError
from moco_jax.base.findings import NOTE, Finding
from moco_jax.data import pipeline
from moco_jax.data.sources import Source
from moco_jax.data.sources.decode import decode_or_flag
from moco_jax.data.views import recipes

PAIRS = 8


def first_pairs(
    source: Source,
    recipe: recipes.Recipe,
    *,
    seed: int,
    batch_size: int,
    workers: int,
    scaled_decoding: bool = False,
) -> pipeline.Rows:
    """Make the first view pairs of a run on `source`, as `train_batches` yields them.

    Raises:
        UserError: none of the images can be decoded.
    """
    batches = pipeline.train_batches(
        source,
        recipe,
        seed=seed,
        batch_size=batch_size,
        rows=np.arange(min(PAIRS, batch_size)),
        examples_seen=0,
        workers=workers,
        damaged=pipeline.DamagedImages(len(source)),
        scaled_decoding=scaled_decoding,
    )
    return next(batches)


def loss(scaled: pipeline.Rows, exact: pipeline.Rows) -> Finding:
    """Compare views made by scaled decoding with the exact ones."""
    apart = [np.abs(scaled[k].astype(np.int32) - exact[k]) for k in ("query", "key")]
    return Finding(
        NOTE,
        f"scaled_decoding changes these views by {np.mean(apart):.2f} of 255 gray levels in the "
        f"mean; {np.mean(np.asarray(apart) > 6):.1%} of their values by more than 6",
    )


def draw(path: epath.Path, source: Source, batch: pipeline.Rows) -> None:
    """Draw the views in `batch` to the file `path`; UserError where it cannot be written."""
    records = source.read(batch["index"])
    images = [
        decode_or_flag(source, tf.constant(record, source.record_spec.dtype)).pixels.numpy()
        for record in records
    ]
    pairs = np.stack([batch["query"], batch["key"]], axis=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figures.view_pairs(path, images, pairs)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); give a folder of yours: --out=FOLDER"
        ) from error
