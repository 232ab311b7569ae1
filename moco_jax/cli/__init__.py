"""Command lines: one file for each command, with its flags and its help."""
