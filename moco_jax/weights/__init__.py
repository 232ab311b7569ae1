"""Weights of other libraries: one file a format, with `load` and `save`, and `bridge.py` from any to any; see docs/weights.md."""
