"""How good is a policy: accuracy over samples and greedy, pass@k, with the samples to look at."""

from rl_llm.evaluation.evaluate import Outcome, evaluate, pass_at_k

__all__ = ["Outcome", "evaluate", "pass_at_k"]
