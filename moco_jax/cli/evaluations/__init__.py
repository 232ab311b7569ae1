"""The work of `python -m moco_jax.evaluate NAME`: one file an evaluation, with its `run`.

The flags of each are in `cli/evaluation_flags.py`, so that help loads nothing of this.
"""
