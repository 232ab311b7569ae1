"""Tests of moco_jax.embedding."""
