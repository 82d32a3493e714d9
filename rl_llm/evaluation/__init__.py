"""Evaluation as people report it: suites, statistics with intervals, comparison of two evaluations."""
