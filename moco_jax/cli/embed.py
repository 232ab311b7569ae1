"""Write a file of features of images, or with `embed search` search in one.

python -m moco_jax.embed --workdir=DIR --data_dir=FOLDER --out=features.npz
python -m moco_jax.embed search features.npz IMAGE ... --k=8
"""

from absl import flags

from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.cli import host_flags, number_flags, shared_flags
from moco_jax.cli.command_line import Command, fail
from moco_jax.config import registry

FORMS = (
    "python -m moco_jax.embed --workdir=DIR --data_dir=FOLDER --out=features.npz, or "
    "python -m moco_jax.embed search features.npz IMAGE ..."
)
SEARCH = """Print and draw the images in a file of features that are nearest to others.

python -m moco_jax.embed search features.npz IMAGE ... --k=8
python -m moco_jax.embed search features.parquet cat/3.png new.jpg --out=nearest.png

IMAGE is a name in the file of features, or a file of an image, which is encoded now.
"""


def define(given: flags.FlagValues) -> None:
    """Define the flags of `embed`."""
    flags.DEFINE_string("workdir", None, "Folder of the run whose encoder is used.", given)
    shared_flags.encoder_of_a_run(given)
    flags.DEFINE_enum(
        "features",
        "backbone",
        registry.FEATURES(),
        "Pooled features, or those after the head.",
        given,
    )
    flags.DEFINE_string(
        "data_dir",
        "",
        "Folder of images, or as --config.data_dir; left out: the run's own images.",
        given,
    )
    flags.DEFINE_string(
        "dataset",
        "",
        "Data set, as --config.dataset; left out: a folder, where --data_dir names one.",
        given,
    )
    flags.DEFINE_string(
        "split", "", "Split of digits, hf or tfds:NAME; left out: train, or the run's.", given
    )
    flags.DEFINE_string(
        "out",
        "",
        "The file to write: .npz or .parquet; on a disk that all hosts see, where several work.",
        given,
    )
    host_flags.define(given)


def define_search(given: flags.FlagValues) -> None:
    """Define the flags of `embed search`."""
    flags.DEFINE_string(
        "workdir", None, "Folder of the run that made the features, if it has moved.", given
    )
    flags.DEFINE_string("out", "", "The picture to write; left out: beside the features.", given)
    number_flags.DEFINE_whole(
        "k", 8, "Number of nearest images to show for each query.", 1, 10**6, given
    )


def main(given: flags.FlagValues, words: list[str]) -> None:
    """Write the features of the images that the flags name."""
    if words:
        fail(f"use one of these: {FORMS}")
    if not given.workdir or not given.out:
        raise UserError(f"--workdir=DIR and --out=FILE are needed: {FORMS}")
    from moco_jax.cli.features import embed

    embed.embed(given)


def main_search(given: flags.FlagValues, words: list[str]) -> None:
    """Search a features file for the images nearest to the given ones."""
    if len(words) < 2:
        fail(f"use one of these: {FORMS}")
    from moco_jax.cli.features import search

    search.run(words[0], words[1:], Console(), k=given.k, workdir=given.workdir, out=given.out)


COMMAND = Command(
    __doc__,
    define,
    main,
    subcommands={"search": Command(SEARCH, define_search, main_search)},
)


def run() -> None:
    """Entry point of the console script `moco-embed`."""
    COMMAND.start()
