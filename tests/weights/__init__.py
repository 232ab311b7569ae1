"""Tests of moco_jax.weights."""
