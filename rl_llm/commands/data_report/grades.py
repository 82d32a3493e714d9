"""Check of a task's verifier on the task's own answers, as a run makes it before it starts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rl_llm.commands.data_report.biases import Check
from rl_llm.problem import Problem
from rl_llm.tasks.answers import written_as_asked

if TYPE_CHECKING:
    from rl_llm.commands.gate import GateReport
    from rl_llm.experiment import Experiment
    from rl_llm.rewards.grader import Grader

ALLOWED = 0.01  # share of failing problems that a run allows by default
SEED = 0
PROBLEMS = 256  # of a file
SECONDS = 20.0  # a report may take longer than the gate of a run


def check_experiment(
    experiment: "Experiment", pools: Mapping[str, Sequence[Problem]], grader: "Grader"
) -> tuple[Check, str]:
    """Grade the answers of all splits, written as the experiment's prompts ask, and wrong ones (`commands.gate`)."""
    from rl_llm.commands.gate import check_answers

    report = check_answers(experiment, pools, SEED, grader, SECONDS)
    return _as_check(report, sum(map(len, pools.values())), experiment.grading.failing_problems)


def check_file(grader: "Grader", problems: Sequence[Problem]) -> tuple[Check, str]:
    r"""Grade the answers of a file, written as each question asks, or else in a \boxed{}, and wrong ones."""
    from rl_llm.commands.gate import boxed_if_bare, check_task

    write = boxed_if_bare(lambda problem: written_as_asked(problem.prompt, problem.answer))
    order = np.random.default_rng(SEED).permutation(len(problems))[:PROBLEMS]
    report = check_task(grader, [problems[index] for index in order], write, SECONDS)
    return _as_check(report, len(problems), ALLOWED)


def check_sentences(problems: Sequence[Problem]) -> Check:
    """Count golds that only a response which repeats them could earn."""
    from rl_llm.commands.gate import SENTENCES_REMEDY, sentence_golds

    found, many = sentence_golds(problems)
    return Check("answers that are sentences", found, SENTENCES_REMEDY if many else "")


def _as_check(report: "GateReport", total: int, allowed: float) -> tuple[Check, str]:
    found = f"{len(report.failures)} of {report.checked} fail ({report.share:.1%}): right graded wrong, or wrong right"
    found += f"; checked {report.checked} of {total}" if report.checked < total else ""
    advice = f"only {report.checked} were checked in {SECONDS:g} s: the verifier is slow" if report.few else ""
    if report.share > allowed:
        advice = f"a run refuses more than {allowed:.0%}: make prompt, answers and verifier agree"
    return Check("graded answers", found, advice), f"graded answers: {report}{report.causes}" if report.failures else ""
