"""Reads and writes weights of other libraries: one file a format, `bridge.py` between them.

docs/weights.md lists the formats.
"""
