"""What `benchmarks/accelerator.py` runs: a file a measuring process, and what starts them."""
