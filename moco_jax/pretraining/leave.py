"""What a run leaves for others: a report, its encoder in other tools' files, and a page on both."""

from collections.abc import Callable

from etils import epath

from moco_jax.base import files
from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.pretraining import usage
from moco_jax.report.page import writing
from moco_jax.weights import bridge
from moco_jax.weights.pretrained import Pretrained

IMAGES = 1000  # that the report's map shows at most
EXPORTED, PAGE = "exported", "README.md"


def leave(out: epath.Path, console: Console) -> None:
    """Write report, exported encoder and the page on their use into the workdir `out`.

    What an earlier call has left there is written anew.
    """
    writing.write([str(out)], "", IMAGES, console)
    pretrained = bridge.load(str(out))
    written = exported(pretrained, out / EXPORTED, console.line)
    there = {kind: f"{EXPORTED}/{name}" for kind, name in written.items()}
    files.write(out / PAGE, usage.page(str(out), pretrained, there).encode())
    console.line(f"how to use the encoder: {out / PAGE}")


def exported(
    pretrained: Pretrained, folder: epath.Path, say: Callable[[str], None]
) -> dict[str, str]:
    """Write the encoder into `folder` in each layout that can hold it: layout -> its name there.

    `say`: is told what was written, and what was left out and why.
    """
    if folder.exists():
        folder.rmtree()
    folder.mkdir(parents=True)
    layout = "timm" if pretrained.is_vit else "torchvision"
    written = {}
    for kind, name in {layout: f"{layout}.safetensors", "huggingface": "huggingface"}.items():
        try:
            bridge.save(pretrained, str(folder / name), kind)
        except UserError as error:
            say(f"left out: {folder / name}: {error}")
            continue
        written[kind] = name
        say(f"written: {folder / name}")
    return written
