"""Devices and processes: meshes, transfers between them, populations of runs, numbers as program arguments."""
