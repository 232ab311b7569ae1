"""Conversion of weights, as `python -m moco_jax.convert`; its flags are in `cli/convert.py`."""

from moco_jax.cli.convert import run

if __name__ == "__main__":
    run()
