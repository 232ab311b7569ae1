"""A run's folder: which recipe it holds, which checkpoints are sound, and the lock that keeps others out."""
