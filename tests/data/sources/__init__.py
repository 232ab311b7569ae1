"""Tests of moco_jax.data.sources."""
