"""Turns images on a disk into batches of views on devices.

Nothing here depends on a model, a loss or BatchNorm groups.
"""
