"""Runs `python -m moco_jax.report`, the page on runs; its flags are in `cli/report.py`."""

from moco_jax.cli.report import run

if __name__ == "__main__":
    run()
