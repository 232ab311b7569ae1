"""Devices and processes: the mesh, joining and agreeing, and checks of the compiler."""
