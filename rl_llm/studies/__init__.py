"""Studies: arms x seeds of training runs, and what they say about hypotheses that were written down before."""
