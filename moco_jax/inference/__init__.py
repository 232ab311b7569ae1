"""Load a trained encoder from a run or a weights file, and apply it to images."""
