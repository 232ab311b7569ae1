"""Augmented views of images: the recipes, the drawing of parameters, and the operations on host and devices."""
