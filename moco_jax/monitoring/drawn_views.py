"""Features of several drawn views of the same images, from which signals without labels come."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from moco_jax.data.labelled_views import KeptViews
from moco_jax.data.sources import Source
from moco_jax.data.views import recipes
from moco_jax.evaluation import features, knn
from moco_jax.monitoring import signals
from moco_jax.monitoring.scores import Monitor, evenly

IMAGES = 1000  # at most, of which views are drawn: LiDAR counts no more directions than images
VIEWS = 10  # of each image
SEED = 0  # of the views: the same at each score, so that scores can be compared


@dataclasses.dataclass
class DrawnViews:
    """Encodes `VIEWS` views of each of some images, the same views each time.

    Every host must call it.

    The views are those that training draws in its first epochs from `SEED`. They are made once,
    and kept in memory if there is room among the views in `kept`.

    Attributes:
        source, indices: the images.
        recipe: of the views.
        encode: from variables and uint8 images to features, in evaluation mode.
        mesh, batch_size, workers: as in the config.
        kept: views that are kept, also those of others.
    """

    source: Source
    indices: np.ndarray
    recipe: recipes.Recipe
    encode: features.Encode
    mesh: Mesh
    batch_size: int
    workers: int
    kept: KeptViews

    @classmethod
    def of(cls, monitor: Monitor) -> "DrawnViews":
        """Take the images that `monitor` searches, or some of them, and its encoder."""
        return cls(
            source=monitor.bank,
            indices=monitor.bank_indices[evenly(len(monitor.bank_indices), IMAGES)],
            recipe=monitor.recipe,
            encode=monitor.encode,
            mesh=monitor.mesh,
            batch_size=monitor.batch_size,
            workers=monitor.workers,
            kept=monitor.kept,
        )

    def features(self, variables: Mapping[str, Any]) -> np.ndarray:
        """Return unit features float32 `[N, VIEWS, D]`; damaged images are left out."""
        found, _ = features.extract(
            self.source,
            self.recipe,
            self.indices,
            self.batch_size,
            self.workers,
            self.mesh,
            lambda images: self.encode(variables, images),
            crops=(SEED, range(VIEWS)),
            views=self.kept,
        )
        # An image that is damaged is left out of every epoch.
        return knn.unit(found).reshape(VIEWS, -1, found.shape[-1]).swapaxes(0, 1)

    def measure(self, variables: Mapping[str, Any]) -> dict[str, float]:
        """Return `lidar`, `alignment`, `uniformity` and `spectrum_decay` of the features.

        The latter two are of one view of each image. There are no numbers where features are not
        finite, or fewer than two images can be decoded, and no decay where the spectrum is short.
        """
        views = self.features(variables)
        if len(views) < 2 or not np.isfinite(views).all():
            return {}
        found = {
            "lidar": signals.lidar(views),
            "alignment": signals.alignment(views),
            "uniformity": signals.uniformity(views[:, 0]),
        }
        decay = signals.spectrum_decay(views[:, 0])
        return found if decay is None else found | {"spectrum_decay": decay}
