"""Errors, files, text, the console and pictures, for every other package; no momentum contrast."""
