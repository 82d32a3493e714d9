"""Predicts the needs of an experiment on a TPU slice, without a TPU.

The experiment's own programs are compiled for the slice on a CPU. Their memory and communication are read from the
compiled programs; time and money are estimated from those.
"""


class PlanError(ValueError):
    """A plan cannot be made as asked. The message names the value, the reason and the remedy."""
