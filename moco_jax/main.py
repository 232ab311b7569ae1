"""Pretraining, as `python -m moco_jax.main`; its flags are in `cli/pretrain.py`."""

from moco_jax.cli.pretrain import run

if __name__ == "__main__":
    run()
