"""Command line of the bridge: weights from one kind of file, or a run, to another.

python -m moco_jax.convert runs/mine backbone.pth --format=torchvision --verify
python -m moco_jax.convert runs/mine moco.pth.tar --format=moco
python -m moco_jax.convert moco_v2_800ep_pretrain.pth.tar r50.pkl --format=detectron2
"""

import contextlib

with contextlib.suppress(ImportError):  # where they are installed, they must come before TensorFlow
    import torch  # noqa: F401
    import torchvision  # noqa: F401

from moco_jax.cli import quiet  # noqa: F401

# isort: split
import tensorflow as tf
from absl import flags, logging

from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.cli.command_line import start
from moco_jax.weights import bridge, huggingface, verify
from moco_jax.weights.workdir import PARTS

FORMAT = flags.DEFINE_string("format", "", f"Of OUT: {', '.join(bridge.FORMATS)}.")
WHICH = flags.DEFINE_string(
    "which", "query", f"Encoder to write, unless the format holds both: {' or '.join(PARTS)}."
)
ARCH = flags.DEFINE_string("arch", "", "What IN must be; empty: as its weights say.")
STEM = flags.DEFINE_string(
    "stem", "", "Of a ResNet in a file; empty: 'imagenet' or 'cifar', by its kernel."
)
VERIFY = flags.DEFINE_bool(
    "verify", False, "Run OUT in PyTorch beside ours and print how far they are apart."
)
PICTURES = flags.DEFINE_string("pictures", "", "Folder of images for --verify; empty: random ones.")
BOUND = 1e-4  # largest difference that counts as equal, as a share of the largest value


def main(argv: list[str]) -> None:
    """Convert."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what does not matter here
    tf.config.set_visible_devices([], "GPU")
    console = Console()
    if len(argv) != 3:
        raise UserError(
            "two names are wanted: a workdir or file of weights, and the file (of huggingface: the folder) to write"
        )
    if PICTURES.value and not VERIFY.value:
        raise UserError("--pictures means something only with --verify")
    _convert(argv[1], argv[2], console)


def _convert(place: str, out: str, console: Console) -> None:
    pretrained = bridge.load(place, ARCH.value, STEM.value)
    console.line(f"{place}: {bridge.describe(pretrained)}")
    if pretrained.left_out:
        console.line(f"left out: {', '.join(map(printable, pretrained.left_out))}")
    for remark in pretrained.remarks:
        console.line(remark)
    bridge.save(pretrained, out, FORMAT.value, WHICH.value)
    console.line(f"{out} is written")
    if FORMAT.value == "huggingface" and huggingface.assumed(pretrained):
        console.line(huggingface.assumed(pretrained))
    if not VERIFY.value:
        return
    pictures = (
        verify.read_pictures(PICTURES.value, pretrained)
        if PICTURES.value
        else verify.random_pictures(pretrained)
    )
    far = False
    for found in verify.compare(pretrained, out, pictures, WHICH.value):
        console.line(
            f"{found.of}: largest difference {found.largest:.1e}, of values up to {found.size:.3g}"
        )
        far |= not found.largest <= BOUND * found.size
    if far:
        raise UserError(f"{out} does not give in PyTorch what the encoder gives here")


def run() -> None:
    """Entry point of the console script `moco-convert`."""
    start(main)


if __name__ == "__main__":
    run()
