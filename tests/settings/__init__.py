"""Tests of what settings may be."""
