"""Weights of other libraries, one file a format, each with `load` and `save`; arrays in, arrays out."""
