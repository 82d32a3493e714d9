"""Launches runs on rented accelerators: one typed spec, a thin renderer per scheduler, and prices."""
