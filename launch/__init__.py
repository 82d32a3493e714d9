"""Launching on accelerators that are rented by the hour: what they are, and what they cost."""
