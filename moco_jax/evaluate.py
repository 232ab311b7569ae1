"""Evaluation, as `python -m moco_jax.evaluate`; its flags are in `cli/evaluate.py`."""

from moco_jax.cli.evaluate import run

if __name__ == "__main__":
    run()
