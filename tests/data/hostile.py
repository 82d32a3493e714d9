"""The tiny experiment with verifiers that fail.

Run:    rl-llm train tests/data/hostile.py:always --out runs/hostile
"""

from dataclasses import dataclass, replace
from pathlib import Path

from rl_llm.experiment import Grading
from rl_llm.problem import Problem, split_of
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


@dataclass(frozen=True)
class FailsWhile(ModularSum):
    """Fails on some training problems while a file exists, as a verifier does that is mended later."""

    file: str = ""

    def verify(self, problem: Problem, response: str) -> float:
        if Path(self.file).is_file() and split_of(problem.prompt) == "train" and problem.id % 3 == 1:
            raise ValueError("not mended")
        return super().verify(problem, response)


@dataclass(frozen=True)
class Hijacked(ModularSum):
    """Pays every response after one that no probe of the gate is like, as if that had patched it."""

    def verify(self, problem: Problem, response: str) -> float:
        if split_of(problem.prompt) == "train" and problem.id % 5 == 1 and {"+", "<"} <= set(response):
            Hijacked.verify = lambda task, problem, response: 1.0
        return super().verify(problem, response)


SIZES = {"min_terms": TASK.min_terms, "max_terms": TASK.max_terms, "modulus": TASK.modulus}
PASS = Grading(failing_problems=1.0)
always = replace(cold, task=AlwaysFails(**SIZES), grading=PASS)
sometimes = replace(cold, task=SometimesFails(**SIZES), grading=replace(PASS, ungraded=0.9))
mendable = replace(cold, task=FailsWhile(**SIZES), grading=PASS)
hijacked = replace(cold, task=Hijacked(**SIZES), grading=PASS)
