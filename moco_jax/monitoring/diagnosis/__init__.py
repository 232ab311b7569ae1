"""Rules that read a run's records and say what goes wrong."""
