"""The training loop and what it needs: the assembled run, checkpoints, throughput, bad steps."""
