"""Pretraining by one call: look at images, choose settings, train, and leave what others read."""
