"""reasoning-gym as a task, and the gate of every task on its data sets."""

import json
import pickle
import sys
from dataclasses import replace

import pytest

from rl_llm.commands.gate import GateReport, check_task
from rl_llm.problem import split_of
from rl_llm.rewards.components import Reward
from rl_llm.rewards.grader import Grader
from rl_llm.tasks.reasoning_gym import ReasoningGym, check_repeats

CHAIN_SUM = ReasoningGym("chain_sum", (("max_terms", 3),))


def test_problems_are_distinct_and_of_their_split():
    for split in ("train", "validation", "held_out"):
        problems = CHAIN_SUM.problems(split, 20, seed=0)
        assert {split_of(problem.prompt) for problem in problems} == {split}
        assert len({problem.prompt for problem in problems}) == len({problem.id for problem in problems}) == 20


def test_the_seed_decides_the_problems():
    assert CHAIN_SUM.problems("train", 20, seed=1) == CHAIN_SUM.problems("train", 20, seed=1)


def test_neighbouring_seeds_share_no_problems():
    prompts = [{problem.prompt for problem in CHAIN_SUM.problems("train", 50, seed)} for seed in (0, 1)]
    assert len(prompts[0] & prompts[1]) <= 2  # short sums may come twice


def test_the_configuration_acts():
    problems = CHAIN_SUM.problems("train", 20, seed=0)
    assert {problem.metadata["entry"]["num_terms"] for problem in problems} == {2, 3}


def test_verification_reads_the_answer_marks_or_the_whole():
    (problem,) = CHAIN_SUM.problems("train", 1, seed=0)
    assert CHAIN_SUM.verify(problem, f"<think>easy</think><answer> {problem.answer} </answer>") == 1.0
    assert CHAIN_SUM.verify(problem, problem.answer) == 1.0
    assert CHAIN_SUM.verify(problem, "<answer>nothing</answer>") == 0.0


def test_a_problem_read_back_from_json_scores_the_same():
    (problem,) = CHAIN_SUM.problems("train", 1, seed=0)
    again = replace(problem, metadata=json.loads(json.dumps(problem.metadata)))
    assert again == problem
    assert CHAIN_SUM.verify(again, problem.answer) == 1.0


def test_it_grades_in_worker_processes():
    problems = CHAIN_SUM.problems("train", 4, seed=0)
    with Grader(CHAIN_SUM.verify, Reward(), workers=1) as grader:
        grades = grader.grade(problems, [problems[0].answer, "junk", problems[2].answer, "junk"])
    assert [grade.accuracy for grade in grades] == [1.0, 0.0, 1.0, 0.0]


def checked(dataset: str, shown: str) -> GateReport:
    """The gate's report on a data set, with a system message before each question."""
    task = ReasoningGym(dataset)
    with Grader(task.verify, Reward(), workers=1) as grader:
        return check_task(
            grader,
            task.problems("train", 24, seed=0),
            lambda problem: task.write_answer(problem, f"{shown} {problem.prompt}"),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "shown"),
    [("gsm_symbolic", ""), ("gsm_symbolic", "End with <answer>...</answer>."), ("spell_backward", "")],
)
def test_the_gate_lets_sound_data_sets_through(dataset: str, shown: str):
    report = checked(dataset, shown)
    assert (report.checked, report.failures) == (24, ())


@pytest.mark.parametrize(
    ("dataset", "shown", "reason"),
    [
        pytest.param("game_of_life_halting", "", '_exit(3)" earns 1', marks=pytest.mark.slow),
        ("prime_factorization", "", "ends in error, ValueError: invalid literal"),
        pytest.param("rearc", "", "earns 0.05", marks=pytest.mark.slow),
        ("chain_sum", r"End with \boxed{...}.", r"the right response '\\boxed{"),
    ],
)
def test_the_gate_finds_an_unsound_verifier(dataset: str, shown: str, reason: str):
    report = checked(dataset, shown)
    assert report.share > 0.5
    assert reason in "\n".join(map(str, report.failures))


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ("rubiks_cube", "stores None as the answer"),
        ("ransom_note", "does not repeat in another process"),
        pytest.param("codeio", "does not repeat in another process", marks=pytest.mark.slow),
    ],
)
def test_unsound_data_sets_are_refused(dataset, reason):
    with pytest.raises(ValueError, match=f"data set '{dataset}' is refused: .*{reason}"):
        ReasoningGym(dataset).problems("train", 1, seed=0)


def test_a_problem_that_does_not_repeat_is_found():
    first, second = CHAIN_SUM.problems("train", 2, seed=0)
    with pytest.raises(ValueError, match="does not repeat in another process"):
        check_repeats(CHAIN_SUM, [first, replace(second, prompt="another question")])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (ReasoningGym("chain_sums"), "has no data set 'chain_sums': did you mean chain_sum"),
        (ReasoningGym("chain_sum", (("terms", 3),)), "has no config field 'terms'; its fields are min_terms"),
        (ReasoningGym("chain_sum", (("min_terms", 0),)), "refuses config=.*: min_terms must be positive"),
    ],
)
def test_a_wrong_task_is_refused(task, message):
    with pytest.raises(ValueError, match=message):
        task.problems("train", 1, seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [((("seed", 3),), "config sets 'seed'"), ((("operators", ["+"]),), "write lists as tuples")],
)
def test_a_wrong_configuration_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        ReasoningGym("chain_sum", config)


def test_a_data_set_that_runs_out_says_how_many_there_are():
    tiny = ReasoningGym("chain_sum", (("max_terms", 2), ("max_digits", 1)))
    with pytest.raises(ValueError, match=r"1000 held_out problems asked for, but after 1\d, 500 draws"):
        tiny.problems("held_out", 1000, seed=0)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"pip install 'rl_llm\[tasks\]'"):
        pickle.loads(pickle.dumps(CHAIN_SUM))
