"""Opens the images that a config names, and creates the recipe of their views."""

from ml_collections import ConfigDict

from moco_jax.config.settings import STRENGTHS
from moco_jax.config.settings.kinds import without_brackets
from moco_jax.data.sources import Source, open_source
from moco_jax.data.sources.pixels import Decoding
from moco_jax.data.views import recipes


def open_images(config: ConfigDict, split: str, index_dir: str | None) -> Source:
    """Open the images of one split of the dataset that `config` names."""
    return open_source(config.dataset, split, config.data_dir, index_dir, Decoding.of(config))


def recipe_of(config: ConfigDict) -> recipes.Recipe:
    """Create the recipe of views that `config` asks for.

    Raises:
        UserError: names a strength that would change nothing, and a value that works.
    """
    smallest = config.crop_min or None
    return recipes.create(
        config.augment, config.image_size, smallest, config.channels, strengths_of(config)
    )


def strengths_of(config: ConfigDict) -> dict[str, tuple[float, ...]]:
    """Return the strengths of views that `config` replaces, by their names."""
    return {name: tuple(config[name]) for name in STRENGTHS if len(config[name])}


def views_in_words(config: ConfigDict) -> str:
    """Name the recipe of views and the strengths that are replaced, as settings are written."""
    replaced = [f"{name}={without_brackets(value)}" for name, value in strengths_of(config).items()]
    return ", ".join([f"augment={config.augment!r}", *replaced])
