"""Features and search, as `python -m moco_jax.embed`; its flags are in `cli/embed.py`."""

from moco_jax.cli.embed import run

if __name__ == "__main__":
    run()
