"""A process of a run of several whose encoder compiles in an instant, and in which things go wrong.

It stands in for Python where a launcher or test says `python -m moco_jax.main ...`. PLAN, JSON in
the environment, says what happens: `events`, a list of [process, step, what], each of which
happens once; or `cases`: all of CASES are played one after the other.
"""

import contextlib
import functools
import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
from flax import linen as nn

from moco_jax import encoders
from moco_jax.base.errors import UserError
from moco_jax.cli.commands import command_of
from moco_jax.data import damaged, resident
from moco_jax.data.damaged import DamagedImages
from moco_jax.data.sources import memory
from moco_jax.encoders.norm import BatchNorm
from moco_jax.monitoring.verdict import NO_GAIN, Verdict
from moco_jax.parallel import known_answers
from moco_jax.training import checkpoint, loop, stop_signals, verdicts
from moco_jax.workdir import integrity, lock, recipe_check

PLAN = json.loads(os.environ.get("PLAN", "{}"))
SETTINGS = {
    "arch": "resnet10",
    "width": 0,
    "stem": "imagenet",
    "image_size": 16,
    "epochs": 2,
    "queue_size": 256,
    "augment_on": "resident",
    "monitor_every": 0,
    "log_every": 1,
    "checkpoint_every": 2,
    "keep": 2,
    "stop_at_step": 12,
    "compute_dtype": "float32",
}
# With an online probe, and a score before the first step only.
PROBED = {"monitor_every": 1, "knn_examples": 512}


class Small(nn.Module):
    """A backbone that compiles in an instant, and has kernels and statistics as every state has."""

    bn_groups: int = 1
    dtype: Any = jnp.float32
    reduce: str = "float32"

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), (2, 2), dtype=self.dtype)(x)
        x = BatchNorm(self.bn_groups, dtype=self.dtype)(x, train)
        return nn.relu(x).mean((1, 2))


def words(workdir, **changes):
    """The words of the command line that trains in `workdir`."""
    given = [f"--config.{name}={value}" for name, value in (SETTINGS | changes).items()]
    return ["--config=configs/digits.py", f"--workdir={workdir}", *given]


# Things that go wrong on process 1 alone, at a place where all processes meet: name -> what is
# replaced, by what, and settings.


def refuse(*_, **__):
    raise UserError("no good")


def _fewer(split, decoding):
    """60 images where process 0 has 70."""
    number = int(PLAN["number"])
    whole = _digits(split, decoding)
    return memory.ArraySource(whole.images[: 70 - 10 * number], None, "digits", decoding)


def _others(split, decoding):
    whole = _digits(split, decoding)
    return memory.ArraySource(whole.images + int(PLAN["number"]), None, "digits", decoding)


def _stop(records, *_):
    """The verdict of process 0, once there is a score; by its own the other one would go on."""
    is_scored = any("feature_spread" in r and r["step"] for r in records)
    return Verdict(NO_GAIN, is_scored, "nothing gained", "nothing gained")


SCORED = {"monitor_every": 1, "knn_examples": 64, "batch_size": 256, "stop_when": "no_gain"}
_digits = memory.digits
FULL = mock.Mock(return_value=mock.Mock(free=1))
CASES: dict[str, tuple[Any, str, Any, int]] = {
    "70 and 60 images": (memory, "digits", _fewer, -1),
    "other images": (memory, "digits", _others, -1),
    "a compiler that is wrong": (known_answers, "wrong_answers", lambda _: ["conv: 1 for 2"], 1),
    "an image source that is refused": (loop, "build", refuse, 1),
    "no room on a device": (resident, "memory_limit", lambda: 1000, 1),
    "records that cannot be read": (loop, "Journal", refuse, 1),
    "no sound checkpoint": (integrity, "lost", lambda *_: "no sound checkpoint left", 0),
    "a workdir that cannot be written": (lock.Lock, "attempt", refuse, 0),
    "a folder of checkpoints that cannot be moved": (integrity, "_moved", refuse, 0),
    "a workdir that others do not see": (recipe_check, "SEEN", 0, 1),
    "a full disk": (checkpoint.shutil, "disk_usage", FULL, 1),
    "nothing gained": (verdicts, "judge", _stop, 0),
    "nothing": (recipe_check, "SEEN", recipe_check.SEEN, 0),
}


# What happens at a step on one process alone.


def bug(training):
    raise ZeroDivisionError("a bug")


def damage(training):
    known = training["damaged"]
    mock.patch.object(damaged, "LOOK", 0).start()
    for number in range(2):
        known.add(f"image {number} of process {training['number']}")


def fail_digests(training):
    mock.patch.object(checkpoint.digests, "write", refuse).start()


def lose_lock(training):
    training["loop"].journal.lock.lost = "taken by another run"
    training["loop"].journal.lock._claimed = True


def interrupt(training):
    os.kill(os.getpid(), signal.SIGINT)
    # Steps take milliseconds, and the processes agree on one in the time of some hundred.
    training["pause"] = 1.0


EVENTS = {
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "interrupt": interrupt,
    "bug": bug,
    "damage": damage,
    "digests": fail_digests,
    "lock": lose_lock,
}


def plan(events, number, folder):
    """Have the `events` of this process happen after their steps."""
    asked, training = stop_signals.StopSignals.asked, {"number": number}

    def remember(cls, name):
        made = cls.__init__

        def init(self, *arguments, **named):
            training[name] = self
            made(self, *arguments, **named)

        mock.patch.object(cls, "__init__", init).start()

    remember(DamagedImages, "damaged")
    remember(loop.Loop, "loop")

    def asked_after_events(self, step):
        for process, at, what in events:
            done = Path(f"{folder}_{what}_{process}_{at}")
            if (process, at) == (number, step) and not done.exists():
                done.write_text("")
                EVENTS[what](training)
        time.sleep(training.get("pause", 0))
        return asked(self, step)

    mock.patch.object(stop_signals.StopSignals, "asked", asked_after_events).start()


def play(number, folder, join):
    """Play all of CASES in turn; print for each its status and what stood in the error stream."""
    PLAN["number"] = number
    for name, (place, attribute, stand_in, at) in CASES.items():
        errors, ended = io.StringIO(), 0
        patches = contextlib.ExitStack()
        if at in (-1, number):
            patches.enter_context(mock.patch.object(place, attribute, stand_in))
        changes = {memory: {"batch_size": 32}, verdicts: SCORED}.get(place, {})
        if name == "nothing":
            changes |= PROBED
        line = [*words(f"{folder}/{name.replace(' ', '_')}", **changes), *join]
        with patches, contextlib.redirect_stderr(errors):
            try:
                command_of("pretrain").call(["main", *line])
            except SystemExit as error:
                ended = error.code
        join = []
        print(json.dumps({"case": name, "status": ended, "errors": errors.getvalue()}), flush=True)


def main():
    # It is not needed here, and its import takes longer than the run.
    sys.modules["tensorflow"] = None
    line = sys.argv[3:] if sys.argv[1] == "-m" else sys.argv[1:]
    flags = dict(word[2:].split("=", 1) for word in line if word.startswith("--") and "=" in word)
    number = int(flags.get("process_id", 0))
    encoders.BACKBONES["resnet10"] = functools.partial(Small)
    if PLAN.get("pid"):  # the number that a container's first process has in each of them
        os.getpid = lambda: PLAN["pid"]
    if PLAN.get("cases"):
        play(number, flags["workdir"], [w for w in line if not w.startswith("--workdir")])
    else:
        plan(PLAN.get("events", []), number, flags["workdir"])
        command_of("pretrain").call(["main", *line])


if __name__ == "__main__":
    main()
