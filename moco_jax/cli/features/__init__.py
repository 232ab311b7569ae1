"""The work of `python -m moco_jax.embed`: features of images to a file, and the search in it."""
