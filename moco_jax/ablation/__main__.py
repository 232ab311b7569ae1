"""Comparisons, as `python -m moco_jax.ablation`; its flags are in `cli/ablation.py`."""

from moco_jax.cli.ablation import run

if __name__ == "__main__":
    run()
