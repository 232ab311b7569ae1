"""Evaluations of an encoder: features of images, and scores computed from them."""
