"""The tiny experiment with verifiers that fail.

Run:    rl-llm train tests/data/hostile.py:always --out runs/hostile
"""

from dataclasses import dataclass, replace

from rl_llm.problem import Problem
from rl_llm.tasks.modular_sum import ModularSum
from tests.data.tiny import TASK, cold


@dataclass(frozen=True)
class AlwaysFails(ModularSum):
    def verify(self, problem: Problem, response: str) -> float:
        raise RuntimeError("boom")


@dataclass(frozen=True)
class SometimesFails(ModularSum):
    def verify(self, problem: Problem, response: str) -> float:
        if problem.id % 2:
            raise ValueError("odd")
        return super().verify(problem, response)


SIZES = {"min_terms": TASK.min_terms, "max_terms": TASK.max_terms, "modulus": TASK.modulus}
always = replace(cold, task=AlwaysFails(**SIZES))
sometimes = replace(cold, task=SometimesFails(**SIZES))
