"""The contact sheet: a few images of the run's first batch beside the views that the run will draw of them."""

import numpy as np
import tensorflow as tf
from etils import epath

from moco_jax.data import pipeline, recipes
from moco_jax.data.sources import Source
from moco_jax.data.sources.decode import decode_or_flag
from moco_jax.errors import UserError
from moco_jax.report import figures

PAIRS = 8


def draw(
    path: epath.Path,
    source: Source,
    recipe: recipes.Recipe,
    seed: int,
    batch_size: int,
    workers: int,
) -> None:
    """Write the sheet to `path`, from the first step of a run on `source` with these settings.

    Raises:
        UserError: none of the images can be decoded, or the sheet cannot be written.
    """
    batches = pipeline.train_batches(
        source, recipe, seed=seed, batch_size=batch_size, rows=np.arange(min(PAIRS, batch_size)),
        examples_seen=0, workers=workers, damaged=pipeline.DamagedImages(len(source)),
    )  # fmt: skip
    batch = next(batches)
    records = source.read(batch["index"])
    images = [
        decode_or_flag(source, tf.constant(record, source.record_spec.dtype))[0].numpy()
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
