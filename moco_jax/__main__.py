"""All commands, as `python -m moco_jax COMMAND`; `cli/commands.py` lists them."""

from moco_jax.cli.commands import run

if __name__ == "__main__":
    run()
