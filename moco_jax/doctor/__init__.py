"""Examination of a run before device time is spent: settings, images, devices, workdir."""
