"""What a run records of itself while it trains, the scores it gives itself, and what these say of it."""
