"""Tests of moco_jax.encoders."""
