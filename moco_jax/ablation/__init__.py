"""Comparisons of several runs: their rows, and the table and figure of their results."""
