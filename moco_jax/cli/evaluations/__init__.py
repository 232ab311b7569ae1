"""What `python -m moco_jax.evaluate NAME` does: one file an evaluation, with the flags that only it has and its `run`."""
