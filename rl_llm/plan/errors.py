"""What can be wrong with a question to the planner."""


class PlanError(ValueError):
    """A plan that cannot be made as asked. The message names the value, the reason and the way out."""
