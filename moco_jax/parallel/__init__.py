"""Devices and processes: the mesh, joining and agreeing, and whether the compiler computes rightly."""
