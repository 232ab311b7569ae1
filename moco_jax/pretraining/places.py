"""Which kind of images a word or a place stands for: `dataset` and `data_dir` of the settings."""

import os

from moco_jax.base import storage
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.config.registry import SOURCES_IN_WORDS
from moco_jax.data.sources.pixels import EXTENSIONS

# Parts of names of files that hold many images, and the kind that reads them.
SHARDS = (
    (".tar", "tar"),
    (".tfrecord", "tfrecord"),
    (".arrayrecord", "arrayrecord"),
    (".array_record", "arrayrecord"),
)


def kind_of(data: str) -> tuple[str, str]:
    """Return `dataset` and `data_dir` for `data`.

    Args:
        data: 'digits', 'tfds:NAME', a folder of images or of shards, one shard, or a text file
            that lists images; here or in a bucket.

    Raises:
        UserError: nothing is there, or it is one image.
    """
    if data == "digits" or data.startswith("tfds:"):
        return data, ""
    place = data if storage.is_remote(data) else os.path.expanduser(data)
    if storage.is_folder(place):
        names = [name.lower() for name in storage.listing(place)]
        found = {kind for part, kind in SHARDS for name in names if part in name}
        return (found.pop() if len(found) == 1 else "folder"), place
    if not storage.is_file(place) and not any(sign in place for sign in "*?"):
        raise UserError(
            f"data={printable(data)} is not there; give a folder of images, shards"
            f" ({', '.join(part for part, _ in SHARDS)}), a text file that lists images, or one of"
            f" {SOURCES_IN_WORDS}"
        )
    name = os.path.basename(place).lower()
    if name.endswith(EXTENSIONS):
        raise UserError(
            f"data={printable(data)} is one image, and an encoder learns from hundreds and more;"
            " give the folder that holds them"
        )
    return next((kind for part, kind in SHARDS if part in name), "folder"), place
