"""`rl-llm data-report`: its report, its cleaned file, which is a task again, and its refusals."""

import json
from pathlib import Path

import pytest
from program import ROOT, TINY

from rl_llm.cli import main
from rl_llm.commands.data_report import write_clean
from rl_llm.problem import Problem, split_of
from rl_llm.tasks.datasets import JsonlProblems

GSM8K = f"{ROOT}/experiments/qwen3_4b_gsm8k.py:smoke"
QUICKSTART = f"{ROOT}/experiments/quickstart.py"
SIZES = ("--set", "prompts_per_step=2", "--set", "evaluation.problems=10", "--set", "train_problems=500")


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 300 lines: 100 sound ones, 180 answered by yes or no, and 20 of the first again in capitals."""
    path = tmp_path_factory.mktemp("data") / "biased.jsonl"
    lines = [(f"Ann walks {n} miles a day. How many in {n + 9} days?", str(n * (n + 9))) for n in range(100)]
    lines += [(f"Is {n} times {n + 3} odd?", ("Yes", "No")[n % 2]) for n in range(180)]
    lines += [(question.upper(), answer) for question, answer in lines[:20]]
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
    assert "0 of 10 checks warn" in printed
    found = verdicts(tmp_path / "data.md")
    assert (len(found), set(found.values())) == (10, {"ok"})
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
        "duplicates",
        "answers by a guess",
        "balance of answers",
    }
    assert "train problems left out: answered by a guess, beyond 10%" in said
    assert "train problems left out: a duplicate" in said

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
