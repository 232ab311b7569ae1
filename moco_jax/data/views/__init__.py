"""Augmented views of images: recipes, drawn parameters, and operations on host and devices."""
