"""The process in which a tracker works: it reads messages, a line of JSON each, and answers them.

So whatever a tracker's package does (prints, hangs, crashes, starts processes that outlive it) it
does not do to the run. Nothing of JAX is loaded here. Where the run dies without a word, the
messages end, and the tracker still closes what it has.
"""

import base64
import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TextIO

from moco_jax.monitoring.trackers import items

# Tracker, as its package is called -> the module that has its `Run`.
MODULES = {
    "wandb": "moco_jax.monitoring.trackers.wandb_run",
    "mlflow": "moco_jax.monitoring.trackers.mlflow_run",
    "trackio": "moco_jax.monitoring.trackers.trackio_run",
}
LAST_SECONDS = 60  # in which a tracker closes after its run has died
LONGEST = 300  # characters of a reason


class Run(Protocol):
    """A run of a tracker; `write_scalars` to `close` are as of clu's `MetricWriter`."""

    def begin(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Open the run, the one of `about["run"]` where that is there.

        `about` has 'project', 'name' and 'settings' of the run, 'folder', in which files may be
        kept (None where it is in a bucket), and 'run', which this returned before or None.

        Returns:
            'run', by which it is found again, as JSON; 'went_on', whether it is that of `about`;
            'where', a line for a person; 'sent', the last step of each thing that it is known to
            have, by the names of `Marks`.
        """

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add numbers at `step`."""

    def write_event(self, step: int, event: Mapping[str, Any]) -> None:
        """Add an event, the content of an `Item`."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Add pictures of PIL at `step`."""

    def flush(self) -> None:
        """Send what is held back."""

    def close(self, failed: bool) -> None:
        """Send what is left, and end the run; `failed`: it ended by an error, or was killed."""


def picture(content: str) -> Any:
    """Decode a PNG in base 64 to a picture of PIL."""
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(content)))


def obey(run: Run, message: Mapping[str, Any]) -> Any:
    """Do what `message` says, and return the answer."""
    if message["do"] == "begin":
        return run.begin(message["about"])
    if message["do"] == "close":
        return run.close(message["failed"])
    for kind, step, content in message["items"]:
        if kind == items.NUMBERS:
            run.write_scalars(step, content)
        elif kind == items.EVENT:
            run.write_event(step, content)
        else:
            run.write_images(step, {name: picture(each) for name, each in content.items()})
    return run.flush()


def reason(error: BaseException) -> str:
    """Say in a line what `error` is."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:LONGEST] if text else type(error).__name__


def serve(name: str, requests: Iterable[str], replies: TextIO) -> Run | None:
    """Answer `requests` until one says to close, one fails, or the run that makes them is gone.

    Each answer is a line of JSON, {'ok': ...} or {'error': why not}.

    Returns:
        what is still to be closed; None where nothing is.
    """
    run: Run | None = None
    for line in requests:
        said, message = dict[str, Any](), dict[str, Any]()
        try:
            message = json.loads(line)
            run = run or importlib.import_module(MODULES[name]).Run()
            said = {"ok": obey(run, message)}
        except (Exception, SystemExit) as error:
            said = {"error": reason(error)}
        try:
            replies.write(json.dumps(said) + "\n")
            replies.flush()
        except BrokenPipeError:
            return run
        if message.get("do") == "close":
            return None
        if "error" in said:
            return run
    return run


def main(name: str) -> None:
    """Serve the tracker `name`, by standard input and output."""
    # Signals are for the run, which saves and then says so; a scheduler sends them to both.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    # What a package prints, and what it starts prints, goes to the file that errors go to.
    os.dup2(2, 1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        run = serve(name, requests, replies)
        signal.alarm(LAST_SECONDS)
        if run is not None:
            run.close(failed=True)
    finally:
        os._exit(0)  # else packages would wait at exit, for networks too


if __name__ == "__main__":
    main(sys.argv[1])
