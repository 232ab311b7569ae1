"""One HTML page on one or several runs: read from their workdirs, drawn, and served."""
