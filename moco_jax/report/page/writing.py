"""Writes the page on some runs to a file."""

from moco_jax.base import files, storage
from moco_jax.base.console import Console, Progress, size
from moco_jax.base.errors import UserError
from moco_jax.report.page import run as runs_lib
from moco_jax.report.page.render import page
from moco_jax.report.page.renewal import Renewal


def write(places: list[str], out: str, images: int, console: Console) -> None:
    """Write the page on the runs in `places` to the file `out`; '': into the first workdir."""
    renewal = Renewal(images, Progress(console))
    runs = runs_lib.read(places)
    path = files.absolute(out) if out else runs[0].place / "report.html"
    seen = [renewal.at(run) for run in runs]
    left_out: list[str] = []
    content = page(runs, seen, say=left_out.append).encode()
    try:
        files.write(path, content)
    except storage.OF_STORES:
        raise
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); choose a place that you may "
            "write to: --out=FILE"
        ) from error
    for line in left_out:
        console.line(f"left out: {line}")
    console.line(f"written: {path} ({size(len(content))})")
