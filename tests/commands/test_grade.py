"""`rl-llm grade`: every line comes back with its grade, and the summary tells where grades and labels differ."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from program import TINY

from rl_llm.cli import main
from rl_llm.config import load_experiment
from rl_llm.prepare import counts

LINES = [
    {"gold": "1/2", "response": r"So \boxed{\frac{1}{2}}.", "right": True, "model": "a"},
    {"gold": "1/2", "response": r"So \boxed{2}.", "right": False},
    {"gold": r"We get \boxed{x+1}.", "response": r"\boxed{1+x}", "right": False},
    {"answer": "3 + 4\n#### 7", "completion": "The answer is 7.", "right": True},
    {"gold": 7, "response": "I do not know."},
]


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def grade(file: Path, *options: str) -> tuple[int, list[dict[str, Any]]]:
    out = file.with_name("grades.jsonl")
    out.unlink(missing_ok=True)
    code = main(["grade", str(file), "--out", str(out), "--workers", "1", *options])
    return code, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def test_each_line_comes_back_in_order_with_grade_and_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, graded = grade(write(tmp_path / "responses.jsonl", LINES))
    assert code == 0
    assert [line["grade"] for line in graded] == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert [line["answer"] for line in graded] == [r"\frac{1}{2}", "2", "1+x", "7", None]
    assert graded[0] == {**LINES[0], "grade": 1.0, "answer": r"\frac{1}{2}"}
    assert graded[3]["gold"] == LINES[3]["answer"]
    printed = capsys.readouterr().out
    assert "5 responses, 3 right (60.00% of those graded)" in printed
    assert "1 without a final answer" in printed
    assert 'agrees with "right" on 3 of 4 (75.00%)' in printed
    assert f"{tmp_path}/responses.jsonl:3: labelled wrong, graded 1.0; gold 'x+1', answer '1+x'" in printed


def test_golds_are_read_as_data_files_have_them_and_labels_may_be_digits(tmp_path: Path, capsys):
    golds = [["3"], ["2", "5"], 27.0, "7"]
    answers = ["3", r"\boxed{5, 2}", "27", "8"]
    rows = zip(golds, answers, [1, "true", 0, "False"], strict=True)
    lines = [{"gold": gold, "response": response, "right": right} for gold, response, right in rows]
    code, graded = grade(write(tmp_path / "responses.jsonl", lines))
    assert code == 0
    assert [line["grade"] for line in graded] == [1.0, 1.0, 1.0, 0.0]
    assert 'agrees with "right" on 3 of 4' in capsys.readouterr().out


def test_a_packed_file_is_read(tmp_path: Path):
    (tmp_path / "responses.jsonl.gz").write_bytes(gzip.compress(json.dumps(LINES[0]).encode()))
    assert grade(tmp_path / "responses.jsonl.gz")[1][0]["grade"] == 1.0


def test_a_response_that_cannot_be_graded_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [{"prompt": "1+1=", "answer": "2", "response": "<answer>2</answer>"}]
    broken = write(tmp_path / "task.py", []).with_name("task.py")
    broken.write_text(
        Path(TINY).read_text()
        + "\nfrom dataclasses import dataclass\nfrom rl_llm.tasks.modular_sum import ModularSum\n"
        "@dataclass(frozen=True)\nclass Raising(ModularSum):\n    def verify(self, problem, response):\n"
        "        raise ZeroDivisionError('no luck')\n"
        "raising = replace(base, task=Raising())\n"
    )
    code, graded = grade(write(tmp_path / "lines.jsonl", lines), "--task", f"{broken}:raising")
    assert code == 0
    assert (graded[0]["grade"], graded[0]["status"]) == (None, "error")
    assert "no luck" in graded[0]["message"]
    assert "1 not graded: error; the first:" in capsys.readouterr().out


def test_the_task_of_an_experiment_grades_its_own_problems(tmp_path: Path):
    experiment = load_experiment(TINY)[1]
    problem = experiment.task.problems("train", counts(experiment)["train"], seed=0)[0]
    right = f"<think></think><answer>{problem.answer}</answer>"
    lines = [{"prompt": problem.prompt, "response": right}, {"prompt": problem.prompt, "response": problem.answer}]
    code, graded = grade(write(tmp_path / "lines.jsonl", lines), "--task", TINY)
    assert code == 0
    assert [(line["grade"], line["reward"], line["answer"]) for line in graded] == [
        (1.0, 1.0, problem.answer),
        (0.0, 0.0, None),
    ]


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ({"gold": "7"}, (), "responses.jsonl:1: there is no response in the fields gold; expected a text in"),
        ({"response": "7"}, (), "responses.jsonl:1: there is no gold answer in the fields response; expected a field"),
        ({"gold": "", "response": "7"}, (), "responses.jsonl:1: the field 'gold' is ''"),
        ({"gold": "7", "response": "7", "completion": "8"}, (), "a line has either 'response' or 'completion'; remove"),
        ({"gold": "7", "response": 7}, (), "there is no response in the fields gold, response"),
        ({"gold": {"a": 7}, "response": "7"}, (), "responses.jsonl:1: the field 'gold' is {'a': 7}; expected a text"),
        ({"gold": "7", "response": "7", "right": "yes"}, (), "\"right\" is 'yes'; expected true, false, 1 or 0"),
        ("7", (), "responses.jsonl:1: str instead of a JSON object"),
        ({"prompt": "?", "response": "7"}, ("--task", TINY), "its prompt '?' is none of the"),
        ({"gold": "7", "response": "7"}, ("--set", "seed=1"), "--set seed=1 cannot act without --task"),
    ],
)
def test_a_line_that_cannot_be_graded_is_refused(line, options, message, tmp_path, capsys):
    code, graded = grade(write(tmp_path / "responses.jsonl", [line]), *options)
    assert (code, graded) == (2, [])
    assert message in capsys.readouterr().err


def test_a_missing_file_and_an_existing_output_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["grade", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert "none.jsonl is not a file" in capsys.readouterr().err
    file = write(tmp_path / "responses.jsonl", LINES[:1])
    assert main(["grade", str(file), "--out", str(file)]) == 2
    assert "already exists" in capsys.readouterr().err
