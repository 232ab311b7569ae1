"""Command line of the page on runs: one HTML file, or with --watch a page that renews itself while a run goes on.

python -m moco_jax.report WORKDIR
python -m moco_jax.report WORKDIR WORKDIR ... --out=compared.html
python -m moco_jax.report WORKDIR --watch
"""

import os
import time

# Beside a run that holds the accelerator; a few hundred images are quick on a CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from moco_jax.cli import quiet  # noqa: F401

# isort: split
from absl import flags, logging

from moco_jax import config as config_lib
from moco_jax.base import files
from moco_jax.base.console import Console, Progress, size
from moco_jax.base.errors import UserError
from moco_jax.cli import number_flags
from moco_jax.cli.command_line import fail, set_up, start
from moco_jax.report.page import run as runs_lib
from moco_jax.report.page.render import page
from moco_jax.report.page.renewal import Renewal
from moco_jax.report.page.watch import Watch

OUT = flags.DEFINE_string("out", "", "The HTML file; report.html in the first workdir if empty.")
WATCH = flags.DEFINE_bool("watch", False, "Serve the page to this machine, and renew it while the run goes on.")  # fmt: skip
PORT = number_flags.DEFINE_whole(
    "port", 8765, "With --watch: where; 0 for any that is free.", 0, 65535
)
IMAGES = number_flags.DEFINE_whole(
    "images", 1000, "That the map shows at most; 0: neither map nor neighbours.", 0, 10**6
)

PAUSE = 2.0  # seconds between looks at the workdirs


def write(places: list[str], console: Console) -> None:
    """Write the page on the runs in `places`."""
    looks = Renewal(IMAGES.value, Progress(console))
    runs = runs_lib.read(places)
    path = files.absolute(OUT.value) if OUT.value else runs[0].place / "report.html"
    seen = [looks.at(run) for run in runs]
    left_out: list[str] = []
    content = page(runs, seen, say=left_out.append).encode()
    try:
        files.write(path, content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); give a file of yours: --out=FILE"
        ) from error
    for line in left_out:
        console.line(f"left out: {line}")
    console.line(f"written: {path} ({size(len(content))})")


def watch(places: list[str], console: Console) -> None:
    """Serve the page on the runs in `places` until Ctrl-C."""
    looks = Renewal(IMAGES.value, lambda text: None)
    runs_lib.read(places)
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            console.line(f"left out: {line}")

    def make(version: str) -> str:
        runs = runs_lib.read(places)
        return page(runs, [looks.at(run) for run in runs], version, say)

    try:
        served = Watch(make, lambda: runs_lib.stamp(places), PORT.value)
    except OSError as error:
        raise UserError(
            f"--port={PORT.value} cannot be listened on ({error.strerror}); --port=0 takes any that is free"
        ) from error
    console.line(f"{served.address} shows the page and renews it; Ctrl-C ends")
    try:
        while True:
            time.sleep(PAUSE)
            try:
                served.look()
            except UserError as error:  # a file that is being written; the page stays as it is
                console.line(f"not renewed: {error}")
    except KeyboardInterrupt:
        served.close()
        console.line("ended")


def main(argv: list[str]) -> None:
    """Write or serve the page."""
    places = argv[1:]
    if not places:
        fail("a workdir is needed: python -m moco_jax.report WORKDIR; --help lists all flags")
    if WATCH.value and OUT.value:
        fail(f"--watch writes no file; leave out --out={OUT.value}, or --watch")
    set_up(config_lib.default_config())
    logging.set_verbosity(logging.ERROR)
    (watch if WATCH.value else write)(places, Console())


def run() -> None:
    """Entry point of the console script `moco-report`."""
    start(main)


if __name__ == "__main__":
    run()
