"""`rl-llm compare`: paired by problem, and refused where the two evaluations are not alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from program import rl_llm

from rl_llm.evaluation.compare import CompareError, compare, read_evaluation

SAMPLING = {"max_tokens": 64, "temperature": 0.6, "top_p": 0.95, "top_k": 0, "min_p": 0.0}
Grades = dict[int, list[float | None]]
Change = Callable[[dict[str, Any]], None]


def write(folder: Path, grades: Grades, change: Change | None = None) -> Path:
    """An evaluation with these grades of a suite's problems, as `rl-llm evaluate --out` writes it."""
    folder.mkdir()
    suite = {"problems": len(grades), "samples": len(next(iter(grades.values()))), "sampling": dict(SAMPLING)}
    suite |= {"prompt": {"template": "{question}", "stop": []}, "seed": 0, "split": "held_out", "fingerprint": "f"}
    result = {"suites": {"sums": suite}}
    if change:
        change(result)
    (folder / "evaluation.json").write_text(json.dumps(result))
    lines = [
        {"suite": name, "problem": problem, "sample": sample, "prompt": f"{problem} + 1?", "gold": "2", "grade": grade}
        for name in result["suites"]
        for problem, of in grades.items()
        for sample, grade in enumerate(of)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_problems_are_paired_counted_and_those_of_one_alone_are_named(tmp_path: Path):
    first = write(tmp_path / "a", {1: [0, 1], 2: [0, 0], 3: [1, 1], 4: [1, 0], 8: [1, 1]})
    second = write(tmp_path / "b", {4: [1, None], 3: [0, 1], 2: [1, 0], 1: [1, 1], 9: [0, 0]})
    (found,) = compare(read_evaluation(first), read_evaluation(second))
    assert (found.better, found.worse, found.equal) == (2, 1, 1)
    assert (found.first.value, found.second.value) == (0.5, 0.625)
    assert found.difference.value == pytest.approx(0.125)
    assert found.difference.low < 0.125 < found.difference.high
    assert found.difference.problems == 4
    assert (found.only_first, found.only_second) == ({8: "8 + 1?"}, {9: "9 + 1?"})


def test_the_command_prints_the_difference_and_json_has_all_numbers(tmp_path: Path):
    first = write(tmp_path / "a", {problem: [0, problem % 2] for problem in range(60)})
    second = write(tmp_path / "b", {problem: [1, problem % 2] for problem in range(61)})
    code, stdout, stderr = rl_llm("compare", first, second)
    assert (code, stderr) == (0, "")
    (row,) = (line for line in stdout.splitlines() if "60, 0, 0" in line)  # whole, although it is piped
    assert row.count("(") == 3
    assert "+50.0%" in row
    assert "sums: 1 problems only in B, left out:\n  60: '60 + 1?'" in stdout
    code, stdout, _ = rl_llm("compare", first / "samples.jsonl", second, "--json")
    suite = json.loads(stdout)["suites"]["sums"]
    assert (suite["difference"]["value"], suite["better"], suite["worse"]) == (0.5, 60, 0)
    assert suite["p_value"] < 0.001


def test_evaluations_may_have_other_numbers_of_samples_and_prompts_which_is_noted(tmp_path: Path):
    first = write(tmp_path / "a", {1: [0, 1], 2: [1, 0]})
    second = write(
        tmp_path / "b", {1: [1], 2: [1]}, lambda result: result["suites"]["sums"]["prompt"].update(template="Q: {q}")
    )
    (found,) = compare(read_evaluation(first), read_evaluation(second))
    assert found.notes == ("prompt.template is '{question}' and 'Q: {q}'", "samples is 2 and 1")


def rename(result: dict[str, Any]) -> None:
    result["suites"]["gsm8k"] = result["suites"].pop("sums")


def warm(result: dict[str, Any]) -> None:
    result["suites"]["sums"]["sampling"] |= {"temperature": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            rename,
            "a has no suite gsm8k, which .*b has; .*b has no suite sums, which .*a has: evaluate both on the same",
        ),
        (warm, "suite sums was sampled in different ways, .*sampling.temperature is 0.6 and 1.0. Evaluate one"),
    ],
)
def test_other_suites_and_other_sampling_are_refused_by_name(tmp_path: Path, change: Change, message: str):
    grades: Grades = {1: [0, 1], 2: [1, 1]}
    first, second = write(tmp_path / "a", grades), write(tmp_path / "b", grades, change)
    with pytest.raises(CompareError, match=message):
        compare(read_evaluation(first), read_evaluation(second))


def test_other_gold_answers_are_refused_with_the_problem(tmp_path: Path):
    first, second = write(tmp_path / "a", {1: [0], 2: [1]}), write(tmp_path / "b", {1: [0], 2: [1]})
    samples = second / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"gold": "2"', '"gold": "3"', 1))
    with pytest.raises(CompareError, match=r"1 problems have other gold answers in .*b, such as 1: '2' and '3'"):
        compare(read_evaluation(first), read_evaluation(second))


def test_no_problem_in_common_is_refused(tmp_path: Path):
    first, second = write(tmp_path / "a", {1: [0]}), write(tmp_path / "b", {2: [1]})
    with pytest.raises(CompareError, match="have no problem in common; use the same file"):
        compare(read_evaluation(first), read_evaluation(second))


def test_what_is_no_evaluation_is_refused_with_the_command_that_makes_one(tmp_path: Path):
    good = write(tmp_path / "a", {1: [0]})
    code, _, stderr = rl_llm("compare", good, tmp_path / "nowhere")
    assert code == 2
    assert "nowhere is not an evaluation" in stderr
    assert "rl-llm evaluate ... --out" in stderr


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("experiment.json", "rl-llm evaluate {} --out NEW"),
        ("config.json", "rl-llm evaluate {} --suite NAME=FILE --out NEW"),
        ("other.txt", "rl-llm evaluate ... --out NEW"),
    ],
)
def test_the_command_for_a_folder_of_something_else_names_a_new_one(name: str, command: str, tmp_path: Path):
    (tmp_path / name).touch()
    (tmp_path / "samples.jsonl").touch()
    with pytest.raises(CompareError) as refused:
        read_evaluation(tmp_path)
    assert command.format(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: text.rindex("{")], "has 3 samples of sums, and evaluation.json says 4"),
        (lambda text: text[:-20], "samples.jsonl, line 4 is damaged"),
        (lambda text: text.replace('"sums"', '"other"', 1), "samples.jsonl, line 1 is damaged: KeyError"),
    ],
)
def test_lost_and_damaged_samples_are_refused(tmp_path: Path, damage: Callable[[str], str], message: str):
    folder = write(tmp_path / "a", {1: [0, 1], 2: [1, 0]})
    (folder / "samples.jsonl").write_text(damage((folder / "samples.jsonl").read_text()))
    with pytest.raises(CompareError, match=message):
        read_evaluation(folder)
