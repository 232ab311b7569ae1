"""Tests of moco_jax.evaluation."""
