"""`python -m moco_jax`: list all commands, or run one of them."""

import difflib
import importlib
import sys

from moco_jax.cli.command_line import HELP, Command, fail, listing

# Each is `moco_jax.cli.NAME`, and a console script `moco-NAME`.
COMMANDS = ("pretrain", "doctor", "evaluate", "embed", "convert", "pack", "report", "ablation")
ALIASES = {"main": "pretrain"}  # as in `python -m moco_jax.main`


def command_of(name: str) -> Command:
    """Load the command `name`."""
    return importlib.import_module(f"moco_jax.cli.{name}").COMMAND


def overview() -> str:
    """Return the list of commands that `python -m moco_jax` prints."""
    lines = listing({name: command_of(name) for name in COMMANDS})
    head = "Momentum-contrast pretraining in JAX: python -m moco_jax COMMAND, or moco-COMMAND."
    return "\n".join([head, "", "commands, each with its own --help:", *lines])


def run() -> None:
    """Run the command that the first word of the command line names; without one, list all."""
    name, rest = next(iter(sys.argv[1:]), ""), sys.argv[2:]
    if not name or name in HELP:
        print(overview())
        return
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        fail(f"{name} is no command; use one of {', '.join(COMMANDS)}{meant}")
    sys.argv = [f"{sys.argv[0]} {name}", *rest]
    command_of(name).start()
