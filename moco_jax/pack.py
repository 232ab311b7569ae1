"""Packing of images, as `python -m moco_jax.pack`; its flags are in `cli/pack.py`."""

from moco_jax.cli.pack import run

if __name__ == "__main__":
    run()
