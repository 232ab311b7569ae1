"""Opens the images that a config names, and creates the recipe of their views."""

from ml_collections import ConfigDict

from moco_jax.data.sources import Source, open_source
from moco_jax.data.sources.pixels import Decoding
from moco_jax.data.views import recipes


def open_images(config: ConfigDict, split: str, index_dir: str | None) -> Source:
    """Open the images of one split of the dataset that `config` names."""
    return open_source(config.dataset, split, config.data_dir, index_dir, Decoding.of(config))


def recipe_of(config: ConfigDict) -> recipes.Recipe:
    """Create the recipe of views that `config` asks for."""
    return recipes.create(
        config.augment, config.image_size, config.crop_min or None, config.channels
    )
