"""`rl-llm data-report`: its report, its cleaned file, which is a task again, and its refusals."""

import json
from pathlib import Path

import pytest
from program import ROOT, TINY

from rl_llm.cli import main
from rl_llm.commands.data_report import write_clean
from rl_llm.problem import Problem, split_of
from rl_llm.tasks.datasets import JsonlProblems
from rl_llm.tasks.layouts import MATH

GSM8K = f"{ROOT}/experiments/qwen3_4b_gsm8k.py:smoke"
QUICKSTART = f"{ROOT}/experiments/quickstart.py"
LAYOUT = ("--set", "task.layout.question=question", "--set", "task.layout.answer=answer")
SIZES = ("--set", "prompts_per_step=2", "--set", "evaluation.problems=10", "--set", "train_problems=500", *LAYOUT)


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 300 lines: 100 sound ones, 180 answered by yes or no, and 20 of the first again, reworded."""
    path = tmp_path_factory.mktemp("data") / "biased.jsonl"
    lines = [(f"Ann walks {n} miles a day. How many in {n + 9} days?", str(n * (n + 9))) for n in range(100)]
    lines += [(f"Is {n} times {n + 3} odd?", ("Yes", "No")[n % 2]) for n in range(180)]
    lines += [(f"So {question}", answer) for question, answer in lines[:20]]
    path.write_text("".join(json.dumps({"question": q, "answer": f"...\n#### {a}"}) + "\n" for q, a in lines))
    return path


def report(*arguments: str | Path) -> int:
    return main(["data-report", *map(str, arguments)])


def verdicts(page: Path) -> dict[str, str]:
    """Verdicts of a report in Markdown, by check."""
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in rows[2:]}


def test_the_task_of_the_quickstart_passes_all_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert report(QUICKSTART, "--problems", 2000, "--out", tmp_path / "data.md") == 0
    printed = capsys.readouterr().out
    assert "modular_sum, 2000 train problems" in printed
    assert "0 of 11 checks warn" in printed
    found = verdicts(tmp_path / "data.md")
    assert (len(found), set(found.values())) == (11, {"ok"})
    page = (tmp_path / "data.md").read_text()
    assert "5 different ones, 2.32 bits of entropy" in page
    assert "2 to 8, half are at" in page
    assert page.endswith("Problems that cleaning removes:\n\n* none\n")


@pytest.mark.parametrize(("number", "verdict"), [(200, "ok"), (30, "warning")])
def test_few_problems_for_many_steps_are_a_warning(number: int, verdict: str, tmp_path: Path):
    sizes = ("steps=40", "prompts_per_step=12", f"train_problems={number}")
    asked = (part for change in sizes for part in ("--set", change))
    assert report(QUICKSTART, *asked, "--out", tmp_path / "data.md") == 0
    assert verdicts(tmp_path / "data.md")["number of problems"] == verdict
    times = f"{number}; the 480 prompts of a run ask each {480 / number:.1f} times"
    assert times in (tmp_path / "data.md").read_text()


def test_biases_are_reported_and_cleaned_into_a_task(biased: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = ("--out", tmp_path / "data.md", "--clean", tmp_path / "clean.jsonl")
    assert report(GSM8K, *SIZES, "--set", f"task.path={biased}", *files) == 0
    said = capsys.readouterr().out
    found = verdicts(tmp_path / "data.md")
    assert {check for check, verdict in found.items() if verdict == "warning"} >= {
        "near-duplicates",
        "answers by a guess",
        "balance of answers",
    }
    assert "train problems left out: answered by a guess, beyond 10%" in said
    assert "train problems left out: a near-duplicate" in said

    cleaned = JsonlProblems(tmp_path / "clean.jsonl")
    train = cleaned.problems("train", 10**6, 0)
    assert {split_of(problem.prompt) for problem in train} == {"train"}
    assert 0 < sum(problem.answer in ("Yes", "No") for problem in train) <= 0.1 * len(train)
    assert {problem.metadata["solution"] for problem in train} == {"..."}
    again = ("--set", f"task.path={tmp_path / 'clean.jsonl'}", "--out", tmp_path / "again.md")
    assert report(GSM8K, *SIZES, *again) == 0
    assert set(verdicts(tmp_path / "again.md").values()) == {"ok"}


def test_cleaning_keeps_the_allowed_share_of_guesses(biased: Path, tmp_path: Path):
    loose = ("--max-guesses", "0.7", "--max-answer", "0.4", "--clean", tmp_path / "clean.jsonl")
    assert report(GSM8K, *SIZES, "--set", f"task.path={biased}", *loose) == 0
    train = JsonlProblems(tmp_path / "clean.jsonl").problems("train", 10**6, 0)
    assert 0.5 * len(train) < sum(problem.answer in ("Yes", "No") for problem in train) <= 0.7 * len(train)


@pytest.mark.parametrize("split", ["validation", "held_out"])
def test_another_split_is_checked(split: str, tmp_path: Path):
    assert report(ROOT / TINY, "--split", split, "--out", tmp_path / "data.md") == 0
    leaks = {check for check in verdicts(tmp_path / "data.md") if check.startswith("leaks")}
    assert leaks == {f"leaks, {other}" for other in ("train", "validation", "held_out") if other != split}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problems", "0"], "--problems: must be a whole number of at least 1, not '0'"),
        (["--problems", "100000"], "100000 train problems asked for"),
        (["--out", "nowhere/data.md"], "--out nowhere/data.md: there is no folder nowhere"),
        (["--clean", "there.jsonl"], "--clean there.jsonl already exists: choose another file"),
        (["--out", "one", "--clean", "one"], "--out and --clean are both one"),
        (["--set", "stepps=3", "--out", "data.md"], "--set stepps=3"),
        (["--split", "test"], "invalid choice: 'test'"),
        (["--max-guesses", "2"], "--max-guesses: must be a share, above 0 and at most 1, not '2'"),
    ],
)
def test_wrong_usage_exits_2_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("there.jsonl").touch()
    try:
        code = report(ROOT / TINY, *arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert (code, message in capsys.readouterr().err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]


def test_cleaning_a_file_of_guesses_only_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [{"question": f"Is {n} odd?", "answer": f"#### {('yes', 'no')[n % 2]}"} for n in range(60)]
    (tmp_path / "guesses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ("--set", f"task.path={tmp_path / 'guesses.jsonl'}", "--clean", tmp_path / "clean.jsonl")
    assert report(GSM8K, *SIZES, *asked) == 2
    assert "no problem would remain; raise --max-guesses" in capsys.readouterr().err
    assert not (tmp_path / "clean.jsonl").exists()


def math_rows(count: int, start: int = 0) -> list[dict[str, str]]:
    places = ("harbour", "market", "station", "library", "garden", "bridge", "tower", "valley")
    return [
        {
            "problem": f"From the {places[n % 8]}, {n} boats sail. Halve {2 * n + 1}.",
            "solution": rf"\boxed{{{n}.5}}",
            "id": n,
        }
        for n in range(start, start + count)
    ]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_reported_on_with_the_layout_that_fits_and_cleaned_in_its_own_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = math_rows(60)
    disputed = {**rows[3], "solution": r"\boxed{4}"}
    path = write_rows(tmp_path / "math.jsonl", [*rows, *rows[:20] * 5, disputed, {"problem": "?", "solution": "a\nb"}])
    assert report(path, "--out", tmp_path / "data.md", "--clean", tmp_path / "clean.jsonl") == 0
    printed = capsys.readouterr().out
    assert "math, 59 problems" in printed
    assert "layout: MATH fits: --set task.layout=MATH" in printed
    assert f"{path}:162: the field 'solution': no final answer" in printed
    assert f"{path}:161: the question has the answer '4', but '3.5' in {path}:4" in printed
    page = (tmp_path / "data.md").read_text()
    assert "162, with 59 problems; 100 repeat another but for case and spacing" in page
    assert "| graded answers | ok | 0 of 59 fail (0.0%)" in page
    assert "| answers that are sentences | ok | 0 of 59 golds" in page
    found = verdicts(tmp_path / "data.md")
    assert (found["rows that cannot be read"], found["questions with several answers"]) == ("warning", "warning")
    assert [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()] == [
        row for row in rows if row != rows[3]
    ]
    task = JsonlProblems(tmp_path / "clean.jsonl", layout=MATH, split="all")
    assert len(task.problems("train", 1000, 0)) == 59


def test_problems_of_another_file_are_found_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train = write_rows(tmp_path / "train.jsonl", math_rows(40))
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"question": math_rows(1, 7)[0]["problem"], "answer": "7.5"}))
    assert report(train, "--without", test, "--clean", tmp_path / "clean.jsonl", "--out", tmp_path / "data.md") == 0
    assert f"| leaks, {test} | warning | 1 are also there, 0 nearly" in (tmp_path / "data.md").read_text()
    assert "39 rows of" in capsys.readouterr().out
    task = JsonlProblems(tmp_path / "clean.jsonl", layout=MATH, split="all")
    assert len(task.problems("train", 1000, 0)) == 39


def test_answers_that_are_graded_wrong_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_rows(tmp_path / "math.jsonl", [{"question": f"Name {n}.", "answer": f"#### {n}"} for n in range(30)])
    assert report(path, "--set", 'marks=["hashes"]', "--out", tmp_path / "data.md") == 0
    assert verdicts(tmp_path / "data.md")["graded answers"] == "warning"
    assert "the right response" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "train"], "--split train cannot act on a data file"),
        (["--problems", "3"], "--problems 3 cannot act on a data file"),
        (["--clean", "clean.csv"], "--clean clean.csv: lines of JSON are written; choose a name that ends in .jsonl"),
        (["--set", "layout.answers=x"], "(Layout) has no 'answers' (did you mean 'answer'?)"),
        (["--set", "layout.answer=x"], "rows that cannot be read"),
        (["--without", "none.jsonl"], "'none.jsonl' is not a file"),
    ],
)
def test_arguments_that_do_not_fit_a_file_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert report(write_rows(tmp_path / "math.jsonl", math_rows(3)), *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}', "no usual layout fits the fields text"),
        ('{"question": "a", "answer": "1", "system": "b"}', "a.jsonl:1: the field 'system' would change what the"),
        ('{"question": "a", "answer": "1", "tools": ["b"]}', "nothing uses it; take it out of the file"),
        ('{"question": "a", "answer": 1' + "0" * 5000 + "}", "none of the first 1 rows"),
        ("", "is empty"),
    ],
)
def test_a_file_without_problems_is_refused(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a.jsonl").write_text(content)
    assert report(tmp_path / "a.jsonl") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "there is no file none.jsonl; expected a data file, or an experiment"),
        ("both", "has a folder for each split, train, test; name one: both/train"),
        (".", "is a folder (with both); name a file in it"),
    ],
)
def test_what_is_no_data_file_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("both").mkdir()
    Path("both/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert report(name) == 2
    assert message in capsys.readouterr().err


def test_another_file_needs_a_data_file(capsys: pytest.CaptureFixture[str]):
    assert report(ROOT / TINY, "--without", "a.jsonl") == 2
    assert "--without a.jsonl cannot act on an experiment; set task.held_out=FILE" in capsys.readouterr().err


def test_cleaning_reports_unwritable_and_moved_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    prompts = [f"What is {n}?" for n in range(40)]
    kept = [Problem(n, prompt, "a\nb" if n < 5 else "7") for n, prompt in enumerate(prompts)]
    write_clean(tmp_path / "clean.jsonl", "train", {"train": kept, "validation": kept[:6]}, {3: "a duplicate"})
    said = capsys.readouterr().out
    moved = sum(split_of(prompt) != "train" for prompt in prompts[5:])
    assert "clean.jsonl: 35 problems" in said
    assert "5 train problems left out: cannot be written as a line of JSONL" in said
    assert "1 train problems left out: a duplicate" in said
    assert f"  {moved} problems change their split" in said


def test_the_report_says_how_many_answers_were_graded(tmp_path: Path):
    path = write_rows(tmp_path / "math.jsonl", math_rows(300))
    assert report(path, "--out", tmp_path / "data.md") == 0
    assert "| graded answers | ok | 0 of 256 fail (0.0%)" in (page := (tmp_path / "data.md").read_text())
    assert "; checked 256 of 300 |" in page


def test_a_suite_in_the_training_data_is_found_and_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    suite = tmp_path / "test.jsonl"
    rows = [{"question": "1+2=", "answer": "#### 3"}, {"question": "Is there a day like it?", "answer": "#### 0"}]
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = tmp_path / "page.md"
    assert report(TINY, "--suite", f"gsm8k={suite}", "--out", page) == 0
    assert "| suite gsm8k | warning | 1 of 2 problems (50.0%) are in the training data |" in page.read_text()
    assert "'1+2=': '1 2' in '1+2='" in page.read_text()


def test_a_suite_cannot_act_on_a_data_file(biased: Path, capsys: pytest.CaptureFixture[str]):
    assert report(biased, "--suite", "gsm8k=test.jsonl") == 2
    assert "--suite gsm8k=test.jsonl cannot act on a data file; use --without FILE" in capsys.readouterr().err
