"""The folder of a run: its recipe, its sound checkpoints, and the lock that keeps others out."""
