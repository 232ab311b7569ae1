"""Recipes: one file each, chosen by --config=configs/NAME.py[:VARIANT]."""
