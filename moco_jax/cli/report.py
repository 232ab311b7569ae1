"""Write or serve a page on one or several runs.

The page shows curves, pictures, evaluations and settings.

python -m moco_jax.report WORKDIR
python -m moco_jax.report WORKDIR WORKDIR ... --out=compared.html
python -m moco_jax.report WORKDIR --watch
"""

import os
import time

from absl import flags, logging

from moco_jax import config as config_lib
from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.cli import number_flags
from moco_jax.cli.command_line import Command, fail
from moco_jax.parallel.devices import set_up

PAUSE = 2.0  # seconds between looks at the workdirs


def define(given: flags.FlagValues) -> None:
    """Define the flags."""
    flags.DEFINE_string(
        "out", "", "The HTML file; left out: report.html in the first workdir.", given
    )
    flags.DEFINE_bool(
        "watch",
        False,
        "Serve the page to this machine, and renew it while the run goes on.",
        given,
    )
    number_flags.DEFINE_whole(
        "port", 8765, "With --watch: port of the page; 0 takes any that is free.", 0, 65535, given
    )
    number_flags.DEFINE_whole(
        "images",
        1000,
        "Images that the map shows at most; 0: neither map nor neighbours.",
        0,
        10**6,
        given,
    )


def watch(places: list[str], port: int, images: int, console: Console) -> None:
    """Serve the page on the runs in `places` until Ctrl-C."""
    from moco_jax.report.page import run as runs_lib
    from moco_jax.report.page.render import page
    from moco_jax.report.page.renewal import Renewal
    from moco_jax.report.page.watch import Watch

    renewal = Renewal(images, lambda text: None)
    runs_lib.read(places)
    known: set[str] = set()

    def say(line: str) -> None:
        if line not in known:
            known.add(line)
            console.line(f"left out: {line}")

    def make(version: str) -> str:
        runs = runs_lib.read(places)
        return page(runs, [renewal.at(run) for run in runs], version, say)

    try:
        served = Watch(make, lambda: runs_lib.stamp(places), port)
    except OSError as error:
        raise UserError(
            f"--port={port} cannot be listened on ({error.strerror}); --port=0 takes any that is "
            "free"
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


def main(given: flags.FlagValues, words: list[str]) -> None:
    """Write or serve the page."""
    if not words:
        fail("a workdir is needed: python -m moco_jax.report WORKDIR; --help lists all flags")
    if given.watch and given.out:
        fail(f"--watch writes no file; leave out --out={given.out}, or --watch")
    # Beside a run that holds the accelerator; a few hundred images are quick on a CPU.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    set_up(config_lib.default_config())
    logging.set_verbosity(logging.ERROR)
    if given.watch:
        watch(words, given.port, given.images, Console())
    else:
        from moco_jax.report.page.writing import write

        write(words, given.out, given.images, Console())


COMMAND = Command(__doc__, define, main)


def run() -> None:
    """Entry point of the console script `moco-report`."""
    COMMAND.start()
