"""Watchers of a run: trackers that show its metrics elsewhere, and traces of its steps."""
