"""The HTML page on runs, and what it is made of."""
