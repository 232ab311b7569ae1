"""What a run needs, examined before device time is spent."""
