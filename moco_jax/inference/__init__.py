"""Loads a trained encoder from a run or a weights file, and applies it to images."""
