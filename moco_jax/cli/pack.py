"""Command line of packing: images into a few large files, which are read faster than many small ones.

python -m moco_jax.pack --data_dir=FOLDER --out=OUT
python -m moco_jax.pack --data_dir=FOLDER --out=gs://BUCKET/OUT --shards=64 --format=arrayrecord
"""

from moco_jax.cli import quiet  # noqa: F401

# isort: split
import sys

import tensorflow as tf
from absl import flags, logging

from moco_jax.base.console import Console, Counter
from moco_jax.base.text import printable
from moco_jax.cli import number_flags
from moco_jax.cli.command_line import fail, start
from moco_jax.data import packing
from moco_jax.data.sources.pixels import RGB, Decoding

DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Folder of images at any depth, or a text file with one path a line."
)
OUT = flags.DEFINE_string("out", "", "Folder of the shards; may be gs://BUCKET/FOLDER.")
SHARDS = number_flags.DEFINE_whole(
    "shards", 0, "How many files; 0: one per 5,000 images.", 0, 10**5
)
FORMAT = flags.DEFINE_string(
    "format", "tfrecord", f"Of the shards: {' or '.join(packing.FORMATS)}."
)
CHANNELS = number_flags.DEFINE_whole(
    "channels", 3, "As in training: other images are left out.", 1, 1024
)
WHITE = number_flags.DEFINE_number("white", 0.0, "As in training.", 0, 2**32)
MAX_PIXELS = number_flags.DEFINE_whole(
    "max_pixels", RGB.max_pixels, "As in training: larger images are left out.", 1, 2**40
)


class Shards(Counter):
    """The progress line of packing, which names the shard and is shown at the end of each."""

    def __init__(self, plan: packing.Plan, console: Console):
        """Create the line for `plan` on `console`."""
        super().__init__(console, "", len(plan.source))
        self.plan = plan

    def seen(self, shard: int, image: int) -> None:
        """Show that the image of this number, of this shard, is done."""
        self.form = f"shard {shard + 1}/{self.plan.shards}  image {{done}}/{{total}}"
        self(image + 1, at_once=image + 1 == self.plan.bounds(shard)[1])


def main(argv: list[str]) -> None:
    """Pack."""
    if len(argv) > 1:
        fail(f"{argv[1]!r} is no flag; --help lists them")
    logging.set_verbosity(logging.WARNING)
    tf.config.set_visible_devices([], "GPU")
    console = Console()
    try:
        decoding = Decoding(channels=CHANNELS.value, white=WHITE.value, max_pixels=MAX_PIXELS.value)
        plan = packing.make_plan(DATA_DIR.value, OUT.value, SHARDS.value, FORMAT.value, decoding)
        console.line(f"{len(plan.source):,} images -> {plan.shards} shards in {plan.out}")
        for said in plan.source.remarks:
            console.line(said)
        packing.pack(plan, Shards(plan, console).seen)
    except KeyboardInterrupt:
        console.line("stopped; finished shards are kept, the same command goes on")
        sys.exit(130)
    damaged = packing.damaged_names(plan)
    console.line(
        f"{plan.out} is whole: {len(plan.source) - len(damaged):,} images; train on it with "
        f"--config.dataset={FORMAT.value} --config.data_dir={plan.out}"
    )
    if damaged:
        console.line(
            f"{len(damaged)} damaged images are left out, named in {plan.out}/*.damaged.txt: "
            f"{', '.join(map(printable, damaged[:10]))}{', ...' if len(damaged) > 10 else ''}"
        )


def run() -> None:
    """Entry point of the console script `moco-pack`."""
    start(main)


if __name__ == "__main__":
    run()
