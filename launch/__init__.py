"""Launching on accelerators that are rented by the hour: one spec, thin renderers for schedulers, and what it costs."""
