"""Convert weights from one kind of file, or a run, to another kind of file.

python -m moco_jax.convert runs/mine backbone.pth --format=torchvision --verify
python -m moco_jax.convert runs/mine moco.pth.tar --format=moco
python -m moco_jax.convert moco_v2_800ep_pretrain.pth.tar r50.pkl --format=detectron2
"""

import contextlib
from typing import TYPE_CHECKING

from absl import flags, logging

from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.cli.command_line import Command
from moco_jax.config import registry

if TYPE_CHECKING:
    from moco_jax.weights.pretrained import Pretrained

BOUND = 1e-4  # largest difference that counts as equal, as a share of the largest value


def define(given: flags.FlagValues) -> None:
    """Define the flags."""
    formats, encoders = registry.WEIGHT_FORMATS(), registry.ENCODERS_OF_A_RUN()
    flags.DEFINE_string("format", "", f"Format of OUT: {', '.join(formats)}.", given)
    flags.DEFINE_string(
        "which",
        "query",
        f"Encoder to write, unless the format holds both: {' or '.join(encoders)}.",
        given,
    )
    flags.DEFINE_string(
        "arch", "", "Architecture that IN must have; left out: as its weights say.", given
    )
    flags.DEFINE_string(
        "stem",
        "",
        "Stem of a ResNet in a file; left out: 'imagenet' or 'cifar', by its kernel.",
        given,
    )
    flags.DEFINE_bool(
        "verify", False, "Run OUT in PyTorch, and print how far its features are from ours.", given
    )
    flags.DEFINE_string(
        "pictures", "", "Folder of images for --verify; left out: random ones.", given
    )


def main(given: flags.FlagValues, words: list[str]) -> None:
    """Convert the weights that the flags name."""
    if len(words) != 2:
        raise UserError(
            "two names are needed, IN and OUT: a workdir or file of weights, and the file to write "
            "(with --format=huggingface a folder)"
        )
    if given.pictures and not given.verify:
        raise UserError(
            f"--pictures={given.pictures} needs --verify; add it, or leave --pictures out"
        )
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what does not matter here
    with contextlib.suppress(ImportError):  # where installed, they must come before TensorFlow
        import torchvision  # noqa: F401
    convert(given, words[0], words[1], Console())


def convert(given: flags.FlagValues, place: str, out: str, console: Console) -> None:
    """Write the weights in `place` to `out`, and with --verify compare them in PyTorch."""
    from moco_jax.weights import bridge, huggingface

    pretrained = bridge.load(place, given.arch, given.stem)
    console.line(f"{place}: {bridge.describe(pretrained)}")
    if pretrained.left_out:
        console.line(f"left out: {', '.join(map(printable, pretrained.left_out))}")
    for remark in pretrained.remarks:
        console.line(remark)
    bridge.save(pretrained, out, given.format, given.which)
    console.line(f"{out} is written")
    if given.format == "huggingface" and huggingface.assumed(pretrained):
        console.line(huggingface.assumed(pretrained))
    if given.verify:
        verify_in_torch(given, pretrained, out, console)


def verify_in_torch(
    given: flags.FlagValues, pretrained: "Pretrained", out: str, console: Console
) -> None:
    """Print how far PyTorch's features of `out` are from ours; refuse those that differ."""
    from moco_jax.weights import verify

    pictures = (
        verify.read_pictures(given.pictures, pretrained)
        if given.pictures
        else verify.random_pictures(pretrained)
    )
    far = False
    for found in verify.compare(pretrained, out, pictures, given.which):
        console.line(
            f"{found.of}: largest difference {found.largest:.1e}, of values up to {found.size:.3g}"
        )
        far |= not found.largest <= BOUND * found.size
    if far:
        raise UserError(
            f"{out} gives other features in PyTorch than the encoder gives here; do not use it"
        )


COMMAND = Command(__doc__, define, main)


def run() -> None:
    """Entry point of the console script `moco-convert`."""
    COMMAND.start()
