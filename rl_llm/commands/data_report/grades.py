"""Check of a task's verifier on the task's own answers, as a run makes it before it starts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rl_llm.commands.data_report.biases import Check
from rl_llm.problem import Problem, Task
from rl_llm.tasks.answers import written_as_asked

if TYPE_CHECKING:
    from rl_llm.experiment import Experiment
    from rl_llm.rewards.gate import GateReport

ALLOWED = 0.01  # share of failing problems that a run allows by default
SEED = 0


def check_experiment(experiment: "Experiment", pools: Mapping[str, Sequence[Problem]]) -> tuple[Check, str]:
    """Grade the answers of all splits, written as the experiment's prompts ask, and wrong ones (`rewards.gate`)."""
    from rl_llm.prepare import check_answers
    from rl_llm.rewards.grader import Grader

    grading = experiment.grading
    with Grader(experiment.task.verify, experiment.reward, grading.workers, grading.time_limit) as grader:
        return _as_check(check_answers(experiment, pools, SEED, grader), grading.failing_problems)


def check_file(task: Task, problems: Sequence[Problem]) -> tuple[Check, str]:
    r"""Grade the answers of a file, written as each question asks, or else in a \boxed{}, and wrong ones."""
    from rl_llm.rewards.components import Reward
    from rl_llm.rewards.gate import check_task
    from rl_llm.rewards.grader import Grader

    def write(problem: Problem) -> str:
        written = written_as_asked(problem.prompt, problem.answer)
        return rf"\boxed{{{written}}}" if written == problem.answer else written

    order = np.random.default_rng(SEED).permutation(len(problems))
    with Grader(task.verify, Reward()) as grader:
        return _as_check(check_task(grader, [problems[index] for index in order], write), ALLOWED)


def _as_check(report: "GateReport", allowed: float) -> tuple[Check, str]:
    found = f"{len(report.failures)} of {report.checked} fail ({report.share:.1%}): right graded wrong, or wrong right"
    advice = f"a run refuses more than {allowed:.0%}: make prompt, answers and verifier agree"
    check = Check("graded answers", found, advice if report.share > allowed else "")
    return check, f"graded answers: {report}" if report.failures else ""
