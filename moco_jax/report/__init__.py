"""What a person sees of a run: lines in the console, records for tools, pictures."""
