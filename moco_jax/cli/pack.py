"""Pack images into a few large files, which are read faster.

python -m moco_jax.pack --data_dir=FOLDER --out=OUT
python -m moco_jax.pack --data_dir=FOLDER --out=gs://BUCKET/OUT --shards=64 --format=arrayrecord
python -m moco_jax.pack --data_dir=LIST.txt --out=OUT --shards=64 --part=$K --parts=8
python -m moco_jax.pack --data_dir=FOLDER --out=OUT --shorter_side=320 --quality=90
python -m moco_jax.pack --data_dir=FOLDER --out=OUT --format=raw
"""

import sys
from typing import TYPE_CHECKING

from absl import flags, logging

from moco_jax.base import packages
from moco_jax.base.console import Console, Counter
from moco_jax.base.text import printable
from moco_jax.cli import number_flags
from moco_jax.cli.command_line import Command, fail
from moco_jax.config import registry, settings

if TYPE_CHECKING:
    from moco_jax.data import packing


def define(given: flags.FlagValues) -> None:
    """Define the flags."""
    flags.DEFINE_string(
        "data_dir",
        "",
        "Folder of images at any depth, a text file with one path a line, or as --config.data_dir.",
        given,
    )
    flags.DEFINE_string("dataset", "folder", "Kind of the images, as --config.dataset.", given)
    flags.DEFINE_string(
        "split", "", "Which of the images, as --config.split, where the data set has parts.", given
    )
    flags.DEFINE_string("out", "", "Folder of the shards; may be gs://BUCKET/FOLDER.", given)
    number_flags.DEFINE_whole(
        "shards", 0, "Files to write; 0: one per 5,000 images.", 0, 10**5, given
    )
    number_flags.DEFINE_whole(
        "parts", 1, "Workers that pack side by side, each a part of the shards.", 1, 10**5, given
    )
    number_flags.DEFINE_whole(
        "part", 0, "Which of --parts this worker packs, from 0.", 0, 10**5, given
    )
    formats = ", ".join(registry.SHARD_FORMATS())
    flags.DEFINE_string(
        "format",
        "tfrecord",
        f"Format of the shards: {formats} (TFRecord files of pixels, which need no decoder: for"
        " small pictures).",
        given,
    )
    _define_rewriting(given)
    number_flags.DEFINE_whole(
        "channels",
        3,
        "Channels of the images, as in training; others are left out.",
        1,
        1024,
        given,
    )
    number_flags.DEFINE_number(
        "white", 0.0, "Value that becomes 255, as --config.white.", 0, 2**32, given
    )
    number_flags.DEFINE_whole(
        "max_pixels",
        settings.SETTINGS["max_pixels"].default,
        "Largest height times width, as in training: larger images are left out.",
        1,
        2**40,
        given,
    )


def _define_rewriting(given: flags.FlagValues) -> None:
    """Define the flags of pictures that are written anew."""
    number_flags.DEFINE_whole(
        "shorter_side",
        0,
        "Pixels to which the shorter side of larger pictures is shrunk; all are upright JPEGs then,"
        " or pixels with --format=raw. 0: pictures stay as they are.",
        0,
        2**16,
        given,
    )
    number_flags.DEFINE_whole(
        "quality", 90, "Of the JPEGs that --shorter_side writes.", 1, 100, given
    )
    number_flags.DEFINE_whole(
        "background",
        -1,
        "Gray level that transparent pixels are blended with where pictures are written anew, as"
        " --config.background.",
        -1,
        255,
        given,
    )
    number_flags.DEFINE_whole(
        "sample",
        256,
        "Pictures by which is measured, at the end, what writing them anew has changed; 0: none.",
        0,
        10**5,
        given,
    )


class Shards(Counter):
    """The progress line of packing, which names the shard and is shown at the end of each."""

    def __init__(self, plan: "packing.Plan", console: Console):
        """Create the line for `plan` on `console`."""
        super().__init__(console, "", len(plan.source))
        self.plan = plan

    def seen(self, shard: int, image: int) -> None:
        """Show that the image of this number, of this shard, is done."""
        self.form = f"shard {shard + 1}/{self.plan.shards}  image {{done}}/{{total}}"
        self(image + 1, at_once=image + 1 == self.plan.bounds(shard)[1])


def main(given: flags.FlagValues, words: list[str]) -> None:
    """Pack the images that the flags name."""
    if words:
        fail(f"{words[0]!r} is no flag; --help lists them")
    logging.set_verbosity(logging.WARNING)
    packages.load_tensorflow("pack")

    from moco_jax.data import packing
    from moco_jax.data.sources import remarks_of

    console = Console()
    try:
        plan = _plan(given)
        console.line(f"{len(plan.source):,} images -> {plan.shards} shards in {plan.out}")
        for remark in remarks_of(plan.source):
            console.line(remark)
        left = packing.pack(plan, Shards(plan, console).seen, given.part, given.parts)
    except KeyboardInterrupt:
        console.line("stopped; finished shards are kept, the same command goes on")
        sys.exit(130)
    if left:
        console.line(
            f"part {given.part} of {given.parts} is done; {len(left)} of {plan.shards} shards are"
            f" for other parts to write, {packing.MANIFEST} comes with the last"
        )
        return
    _say_what_was_done(plan, console, given.sample)


def _plan(given: flags.FlagValues) -> "packing.Plan":
    """Make the plan of what the flags ask for."""
    from moco_jax.data import packing
    from moco_jax.data.sources.conversion import Decoding

    decoding = Decoding(
        channels=given.channels,
        white=given.white,
        background=given.background,
        max_pixels=given.max_pixels,
    )
    quality = given.quality if given["quality"].present else None
    wanted = given.data_dir, given.out, given.shards, given.format
    images = given.dataset, registry.split_of(given.dataset, given.split)
    return packing.make_plan(*wanted, decoding, given.shorter_side, quality, *images)


def _say_what_was_done(plan: "packing.Plan", console: Console, sample: int) -> None:
    """Print what the shards hold, how to train on them, and what they lack."""
    from moco_jax.data import packing

    damaged = packing.damaged_names(plan)
    console.line(
        f"{plan.out} is whole: {len(plan.source) - len(damaged):,} images; train on it with "
        f"--config.dataset={packing.FORMATS[plan.format].dataset} --config.data_dir={plan.out}"
    )
    if damaged:
        more = ", ..." if len(damaged) > 10 else ""
        console.line(
            f"{len(damaged)} damaged images are left out, named in {plan.out}/*.damaged.txt: "
            f"{', '.join(map(printable, damaged[:10]))}{more}"
        )
    if sample and not plan.rewriting.as_they_are:
        from moco_jax.data.packing import effect

        console.line(f"measuring what changed, on {sample} images at most; --sample=0 leaves it")
        try:
            console.line(str(effect.measure(plan, sample)))
        except KeyboardInterrupt:
            console.line("stopped; the shards are whole")


COMMAND = Command(__doc__, define, main)


def run() -> None:
    """Entry point of the console script `moco-pack`."""
    COMMAND.start()
