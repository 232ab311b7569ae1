"""Parts of `signals_vs_probe.py`: the runs that it trains, what it measures, table and figure."""
