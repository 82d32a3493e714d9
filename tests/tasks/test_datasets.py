"""Data files as tasks: refused rows, repeats, splits and their files, the prepared copy, the order, the verifier."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rl_llm.problem import Problem, split_of
from rl_llm.rollout.text import encode_shown
from rl_llm.tasks import datasets
from rl_llm.tasks.answers import MARKS
from rl_llm.tasks.datasets import JsonlProblems
from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from rl_llm.tasks.layouts import MATH, TRL, Layout
from rl_llm.tasks.tokenizer import CharacterTokenizer

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).parents[1] / "data" / "gsm8k_style.jsonl"
SPLITS = ("train", "validation", "held_out")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return JsonlProblems(EXAMPLE, data_dir=tmp_path_factory.mktemp("prepared"))


def write(path: Path, *lines: object) -> Path:
    """Write a JSONL file; lines other than text are written as JSON."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def line(number: int) -> dict[str, str]:
    return {"question": f"What is {number} + 1?", "answer": f"{number} + 1 = {number + 1}. #### {number + 1}"}


def problems_of_all_splits(task: JsonlProblems) -> list[Problem]:
    return [problem for split in SPLITS for problem in task.problems(split, 1000, seed=0)]


def test_every_line_is_a_problem_of_one_split(task):
    lines = [json.loads(text) for text in EXAMPLE.read_text().splitlines()]
    problems = {problem.prompt: problem for problem in problems_of_all_splits(task)}
    assert len(problems) == len(lines) == 40
    for record in lines:
        problem = problems[record["question"]]
        assert record["answer"] == f"{problem.metadata['solution']}\n#### {problem.answer}"
    for split in SPLITS:
        assert {split_of(problem.prompt) for problem in task.problems(split, 1000, seed=0)} == {split}


def test_the_seed_decides_the_order(task):
    orders = [[problem.prompt for problem in task.problems("train", 1000, seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_a_smaller_count_gives_the_first_problems(task):
    assert task.problems("train", 5, seed=0) == task.problems("train", 1000, seed=0)[:5]


def test_the_name_is_the_file_s(task):
    assert task.name == "gsm8k_style"


def test_the_copy_is_kept_beside_the_file_and_reused(tmp_path):
    task = JsonlProblems(write(tmp_path / "sums.jsonl", *map(line, range(50))))
    first = problems_of_all_splits(task)
    (copy,) = (tmp_path / ".tfds").iterdir()
    written = {path: path.stat().st_mtime_ns for path in copy.rglob("*.array_record*")}
    assert len(written) == 3
    assert problems_of_all_splits(task) == first
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.array_record*")} == written


def test_a_changed_file_is_prepared_again(tmp_path):
    task = JsonlProblems(write(tmp_path / "sums.jsonl", *map(line, range(50))))
    before = problems_of_all_splits(task)
    write(tmp_path / "sums.jsonl", *map(line, range(51)))
    after = problems_of_all_splits(task)
    assert {problem.prompt for problem in after} - {problem.prompt for problem in before} == {"What is 50 + 1?"}


def test_the_order_of_marks_decides_the_answer(tmp_path):
    path = write(tmp_path / "both.jsonl", {"question": "q", "answer": r"\boxed{1} #### 2"})
    for marks, answer in ((MARKS, "1"), (("hashes", "boxed"), "2")):
        task = JsonlProblems(path, marks=marks, split="all")
        (problem,) = task.problems("train", 1, seed=0)
        assert problem.answer == answer
        assert task.verify(problem, r"\boxed{1} #### 2") == 1.0


def test_solutions_with_boxes_are_read_by_the_layout_of_math(tmp_path):
    solution = r"As $2 = \boxed{2}$ is even, half of it is $\boxed{\frac{2}{\sqrt{4}}}$."
    path = write(tmp_path / "math.jsonl", {"problem": "q", "solution": solution, "level": "Level 5", "type": "Algebra"})
    (problem,) = JsonlProblems(path, layout=MATH, split="all").problems("train", 1, seed=0)
    assert (problem.answer, problem.metadata) == (r"\frac{2}{\sqrt{4}}", {"solution": solution})


def test_messages_are_kept_for_the_chat_template(tmp_path):
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    path = write(tmp_path / "chat.jsonl", {"prompt": said, "answer": "1"})
    (problem,) = JsonlProblems(path, layout=TRL, split="all").problems("train", 1, seed=0)
    assert problem.prompt == "system: Be brief.\n\nuser: q"
    tokenizer = HuggingFaceTokenizer(EXAMPLE.parent / "tokenizers" / "qwen3", chat=True, system="Never shown.")
    shown = encode_shown(tokenizer, problem)
    assert shown == tokenizer.encode_chat(said, "1")[0]
    with pytest.raises(ValueError, match=r"set tokenizer\.chat=true"):
        encode_shown(replace(tokenizer, chat=False, system=None), problem)
    with pytest.raises(ValueError, match="has 2 messages, and CharacterTokenizer has no chat template"):
        encode_shown(CharacterTokenizer(tuple("q: ")), problem)


def test_a_file_of_its_own_is_one_split_and_used_whole(tmp_path):
    write(tmp_path / "train.jsonl", *map(line, range(60)))
    write(tmp_path / "test.jsonl", *map(line, range(60, 80)))
    task = JsonlProblems(tmp_path / "train.jsonl", held_out=tmp_path / "test.jsonl")
    found = {split: {problem.prompt for problem in task.problems(split, 1000, 0)} for split in SPLITS}
    assert found["held_out"] == {line(number)["question"] for number in range(60, 80)}
    assert found["train"] | found["validation"] == {line(number)["question"] for number in range(60)}
    assert {split_of(prompt) for prompt in found["validation"]} == {"validation"}
    both = replace(task, validation=tmp_path / "test.jsonl", held_out=None)
    assert len(both.problems("validation", 1000, 0)) == 20
    assert len(both.problems("train", 1000, 0)) + len(both.problems("held_out", 1000, 0)) == 60


def test_a_whole_file_is_every_split(tmp_path):
    task = JsonlProblems(write(tmp_path / "test.jsonl", *map(line, range(20))), split="all")
    assert {len(task.problems(split, 1000, 0)) for split in SPLITS} == {20}


def test_a_question_in_two_files_is_refused_with_both_places(tmp_path):
    write(tmp_path / "train.jsonl", line(0), line(1))
    write(tmp_path / "test.jsonl", line(2), line(1))
    task = JsonlProblems(tmp_path / "train.jsonl", held_out=tmp_path / "test.jsonl")
    with pytest.raises(ValueError, match=r"test.jsonl:2: the question stands in .*train.jsonl:2 as well"):
        task.problems("train", 1, seed=0)


def test_a_question_in_two_files_is_found_in_any_case_and_spacing(tmp_path):
    write(tmp_path / "train.jsonl", line(0), line(1))
    write(tmp_path / "test.jsonl", {**line(1), "question": "WHAT IS 1  + 1 ?"})
    task = JsonlProblems(tmp_path / "train.jsonl", held_out=tmp_path / "test.jsonl")
    with pytest.raises(ValueError, match=r"test.jsonl:1: the question stands in .*train.jsonl:2 as well"):
        task.problems("train", 1, seed=0)


def test_a_repeated_question_counts_once(tmp_path):
    once = JsonlProblems(write(tmp_path / "sums.jsonl", *map(line, range(30))))
    again = {**line(3), "answer": "So it is #### 4.0"}
    path = write(tmp_path / "twice" / "sums.jsonl", *map(line, range(30)), *map(line, range(20)), again)
    assert problems_of_all_splits(JsonlProblems(path)) == problems_of_all_splits(once)


def test_other_layouts_and_marks_and_parsers_make_other_copies(tmp_path, monkeypatch):
    path = write(tmp_path / "sums.jsonl", {"question": "q", "answer": r"\boxed{1} #### 2", "final": "3"})
    task = JsonlProblems(path, split="all")
    changed = [task, replace(task, layout=Layout(answer="final")), replace(task, marks=("hashes",))]
    assert [one.problems("train", 1, 0)[0].answer for one in changed] == ["1", "3", "2"]
    monkeypatch.setattr(datasets, "split_gold", lambda text, marks: ("", "made by a later parser"))
    assert task.problems("train", 1, 0)[0].answer == "1"
    monkeypatch.setattr(datasets, "PARSER", datasets.PARSER + 1)
    assert task.problems("train", 1, 0)[0].answer == "made by a later parser"


def test_records_change_only_with_the_version_of_the_parser():
    """If this fails, raise PARSER in rl_llm/tasks/datasets.py, so that no prepared copy outlives its parser."""
    answers = (
        "so #### 1,000",
        r"\boxed{\frac{1}{2}}",
        "<answer> x </answer>",
        "The answer is 7.",
        "Paris",
        27.0,
        ["1", "2"],
        '["3"]',
    )
    rows = [{"question": f" Cafe\u0301 {n}?", "answer": answer} for n, answer in enumerate(answers)]
    rows += [{"question": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "answer": "1"}]
    task = JsonlProblems("unused.jsonl")
    found = [dict(task._record(row)) for row in rows]
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
    assert (datasets.PARSER, digest) == (5, "b7a410d633e92bd4")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('{"question": "What', "Unterminated string"),
        ("[1, 2]", "list instead of a JSON object"),
        ({"question": "What?"}, "the field 'answer' is missing; there are 'question'"),
        ({"answer": "#### 1"}, "the field 'question' is missing"),
        ({"question": None, "answer": "#### 1"}, "the field 'question' is None"),
        ({"question": " ", "answer": "#### 1"}, "the field 'question' is ' '"),
        ({"question": "What?", "answer": "It is\n1"}, "the field 'answer': no final answer"),
        ({"question": "What?", "answer": "It is 1."}, "the answer 'It is 1.' is a sentence without a mark"),
        ('{"question": "What?", "answer": "1", "answer": "2"}', "the key 'answer' stands twice in the object"),
    ],
)
def test_a_malformed_line_is_refused_with_its_place(tmp_path, broken, reason):
    path = write(tmp_path / "sums.jsonl", line(0), line(1), broken, line(2))
    with pytest.raises(ValueError, match=r"sums.jsonl:3: ") as caught:
        JsonlProblems(path).problems("train", 1, seed=0)
    assert reason in str(caught.value)
    assert "rl-llm data-report" in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_of_invalid_text_is_refused_with_its_place(tmp_path):
    (tmp_path / "sums.jsonl").write_bytes(json.dumps(line(0)).encode() + b"\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"sums.jsonl:2: 'utf-8' codec can't decode"):
        JsonlProblems(tmp_path / "sums.jsonl").problems("train", 1, seed=0)


@pytest.mark.parametrize("question", ["Caf\u00e9?", "Cafe\u0301? ", " CAF\u00c9"])
def test_spellings_of_one_question_with_several_answers_are_left_out_with_a_word(tmp_path, question, caplog):
    disputed = [{**line(0), "question": "Caf\u00e9?"}, {**line(1), "question": question}]
    task = JsonlProblems(write(tmp_path / "sums.jsonl", *disputed, *map(line, range(5))), split="all")
    assert {problem.prompt for problem in task.problems("train", 10, seed=0)} == {
        line(number)["question"] for number in range(5)
    }
    place = tmp_path / "sums.jsonl"
    assert f"1 questions with several answers are left out, such as {place}:2: the question has" in caplog.text
    assert f"the answer '2', but '1' in {place}:1" in caplog.text


def test_lone_surrogates_and_deep_nesting_are_refused_with_their_place(tmp_path):
    for broken in (b'{"question": "\\ud800?", "answer": "#### 1"}', b"[" * 100_000):
        (tmp_path / "sums.jsonl").write_bytes(json.dumps(line(0)).encode() + b"\n" + broken + b"\n")
        with pytest.raises(ValueError, match=r"sums.jsonl:2: "):
            JsonlProblems(tmp_path / "sums.jsonl").problems("train", 1, seed=0)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"sums.jsonl is empty"):
        JsonlProblems(write(tmp_path / "sums.jsonl")).problems("train", 1, seed=0)


def test_a_split_without_problems_is_refused(tmp_path):
    numbers = [number for number in range(50) if split_of(line(number)["question"]) == "train"]
    task = JsonlProblems(write(tmp_path / "sums.jsonl", *map(line, numbers)))
    with pytest.raises(ValueError, match=rf"has no held_out problems, only \{{'train': {len(numbers)}\}}"):
        task.problems("held_out", 1, seed=0)


@pytest.mark.parametrize("kept", [0, 100, 65536, -1])  # at 65536 bytes, reading gives None and no error
def test_a_damaged_copy_is_refused(tmp_path, kept):
    task = JsonlProblems(write(tmp_path / "sums.jsonl", *map(line, range(50))))
    before = task.problems("train", 1000, seed=0)
    (records,) = tmp_path.rglob("*train.array_record*")
    records.write_bytes(records.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"prepared copy of .*sums.jsonl is damaged"):
        task.problems("train", 1000, seed=0)
    shutil.rmtree(records.parent)
    assert task.problems("train", 1000, seed=0) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"marks": ()}, "marks is empty; expected some of boxed"),
        ({"marks": ("box",)}, "marks.0='box' must be one of 'boxed'.*did you mean 'boxed'"),
        ({"layout": "AIME"}, r"layout='AIME' is no Layout; expected .* PRESETS\[NAME\] with a NAME among DAPO"),
        ({"split": "none"}, "split='none' must be one of 'hash', 'all'"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        JsonlProblems(EXAMPLE, **fields)


@pytest.mark.parametrize(
    ("stored", "response", "accuracy"),
    [
        ("1,000", "<answer>1000</answer>", 1.0),
        ("1000", "<answer> $1,000.00 </answer>", 1.0),
        ("1000.0", "it is #### 1000", 1.0),
        ("0.5", "<answer>.50</answer>", 1.0),
        ("-3", "<answer>-3.</answer>", 1.0),
        ("8,000", "4000 * 2 makes 8,000, I think.", 1.0),
        ("4", "7-3=7-3=4", 1.0),
        ("-4", "3 - 7 is -4", 1.0),
        ("0.5", "so it is .5", 1.0),
        ("5", "the answer is .5", 0.0),
        ("5", "x = -.5", 0.0),
        ("2.5", "it costs $2.5.", 1.0),
        ("Paris", "<answer>paris.</answer>", 1.0),
        ("12", "<answer>1,2</answer>", 0.0),
        ("3", "<answer>-3</answer>", 0.0),
        ("4", "<answer>5</answer> #### 4", 0.0),
        ("4", "4 #### 5", 0.0),
        ("4", "<answer></answer>", 0.0),
        ("4", "no idea", 0.0),
        ("4", "", 0.0),
        ("4", "1" * 10_000, 0.0),
        ("4", "<answer>sNaN</answer>", 0.0),
        ("4", "<answer>1e999999999</answer>", 0.0),
    ],
)
def test_answers_are_compared_as_numbers(task, stored, response, accuracy):
    assert task.verify(Problem(id=0, prompt="", answer=stored), response) == accuracy


def test_tensorflow_is_not_imported_and_nothing_is_printed(tmp_path):
    program = (
        "import sys\n"
        "from rl_llm.tasks.datasets import JsonlProblems\n"
        "assert not {'jax', 'grain', 'tensorflow_datasets'} & set(sys.modules)\n"
        f"assert JsonlProblems({str(EXAMPLE)!r}, data_dir={str(tmp_path)!r}).problems('train', 5, seed=0)\n"
        "assert {'grain', 'tensorflow_datasets'} <= set(sys.modules)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"pip install 'rl_llm\[data\]'"):
        JsonlProblems(EXAMPLE, data_dir=tmp_path).problems("train", 1, seed=0)
