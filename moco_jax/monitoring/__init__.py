"""Records and scores of a run while it trains, and the rules that diagnose it by them."""
