"""`rl-llm data-report`: check the problems of an experiment's task before a run, without a model."""

import argparse
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_llm.commands.common import DONE, UsageError, add_experiment, check_output, positive, resolve_experiment, share
from rl_llm.config import file_of
from rl_llm.config.terminal import make_console, show
from rl_llm.tasks.tables import read_files

if TYPE_CHECKING:
    from rl_llm.commands.data_report.biases import Check, Survey
    from rl_llm.problem import Split

SUMMARY = "find biases, duplicates and leaks in the problems of a task"
GUESSES, ANSWER = 0.10, 0.30  # largest shares of the problems
SEED = 0  # of the problems; the default of `rl-llm train`
EXAMPLES = """examples:
  rl-llm data-report experiments/quickstart.py
  rl-llm data-report experiments/qwen3_4b_gsm8k.py:smoke --out data.md
  rl-llm data-report experiments/qwen3_4b_gsm8k.py --suite gsm8k=test.jsonl --suite math500=math500.jsonl
  rl-llm data-report train.parquet --without test.jsonl --clean clean.jsonl
  rl-llm data-report experiments/qwen3_4b_gsm8k.py:smoke --clean clean.jsonl --max-guesses 0.05"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `data-report`."""
    add_experiment(parser, "; or a data file: JSONL, JSON, CSV, parquet")
    splits = ("train", "validation", "held_out")
    parser.add_argument("--split", choices=splits, help="split of an experiment's task to check (default: train)")
    parser.add_argument("--problems", type=positive, metavar="N", help="number of problems (default: the experiment's)")
    without = "with a data file: also find the problems that stand in this file, such as a test set"
    parser.add_argument("--without", metavar="FILE", help=without)
    suite = "with an experiment: find the problems of this benchmark in its training data; may be repeated"
    parser.add_argument("--suite", action="append", default=[], metavar="NAME=FILE", help=suite)
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the report to this file, as Markdown")
    clean = "write the remaining problems, and those of the run's other splits, to this file: a JSONL task"
    parser.add_argument("--clean", type=Path, metavar="FILE", help=clean)
    for name, default, kind in (
        ("--max-guesses", GUESSES, "answered by True/False, Yes/No or an option's letter"),
        ("--max-answer", ANSWER, "with the same answer"),
    ):
        limit = f"largest share of problems {kind} (default: {default})"
        parser.add_argument(name, type=share, default=default, metavar="SHARE", help=limit)


def run(arguments: argparse.Namespace) -> int:
    """Check the problems that a run would use: one line per check, with a verdict and advice.

    The checks cover skewed and guessable answers, duplicates, leaks into other splits, answers in prompts, lengths,
    difficulty, and how often a run would repeat each problem. Of a data file they also name the layout that fits, and
    rows that cannot be read; --clean then writes the file's own rows. The exit code is 0 whatever they find.
    """
    for option in ("out", "clean"):
        check_output(option, getattr(arguments, option))
    if arguments.out is not None and arguments.out == arguments.clean:
        raise UsageError(f"--out and --clean are both {arguments.out}: choose two files")
    if arguments.clean is not None and arguments.clean.suffix not in (".jsonl", ".json"):
        raise UsageError(f"--clean {arguments.clean}: lines of JSON are written; choose a name that ends in .jsonl")
    is_file = _is_data_file(arguments.experiment)
    if is_file and arguments.suite:
        raise UsageError(f"--suite {arguments.suite[0]} cannot act on a data file; use --without FILE")
    for option in ("split", "problems") if is_file else ("without",):
        if getattr(arguments, option):
            where = "a data file, which is one split" if is_file else "an experiment; set task.held_out=FILE"
            raise UsageError(f"--{option} {getattr(arguments, option)} cannot act on {where}")
    try:
        return _report_file(arguments) if is_file else _report_experiment(arguments)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error


def _is_data_file(name: str) -> bool:
    """Whether it names a data file, and not an experiment. Raises UsageError if it names nothing that there is."""
    if file_of(name).endswith(".py"):
        return False
    try:
        found = bool(read_files(name))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not found:
        raise UsageError(f"there is no file {name}; expected a data file, or an experiment, path/to/file.py[:NAME]")
    return found


def _report_experiment(arguments: argparse.Namespace) -> int:
    from rl_llm.commands.data_report.biases import Limits, survey
    from rl_llm.commands.data_report.grades import check_experiment, check_sentences
    from rl_llm.prepare import counts
    from rl_llm.rewards.grader import Grader
    from rl_llm.rollout.text import encode_shown

    name, experiment = resolve_experiment(arguments.experiment, arguments.overrides)
    split: Split = arguments.split or "train"
    asked = counts(experiment) | ({split: arguments.problems} if arguments.problems else {})
    pools = {pool: experiment.task.problems(pool, count, SEED) for pool, count in asked.items()}
    problems = pools[split]
    lengths = [len(encode_shown(experiment.tokenizer, problem)) for problem in problems]
    others = {pool: found for pool, found in pools.items() if pool != split}
    limits = Limits(arguments.max_guesses, arguments.max_answer)
    trained_on = split == "train" and arguments.problems is None
    prompts = experiment.steps * experiment.prompts_per_step if trained_on else 0
    grading = experiment.grading
    with Grader(experiment.task.verify, experiment.reward, grading.workers, grading.time_limit) as grader:
        found = survey(grader, problems, others, lengths, experiment.max_prompt_tokens, limits, prompts)
        if any("solution" in problem.metadata for problem in problems):  # of a file
            found = _with(found, check_sentences(problems))
        found = _with(found, *check_experiment(experiment, pools, grader))
    if arguments.suite:
        from rl_llm.commands.data_report.suites import check_suites

        for check, note in check_suites(experiment, arguments.suite, SEED):
            found = _with(found, check, note)
    title = f"{experiment.task.name}, {len(problems)} {split} problems"
    kept = [problem for index, problem in enumerate(problems) if index not in found.removed]
    _publish(arguments, title, f"{arguments.experiment}, {name}", found, len(problems))
    if arguments.clean is not None:
        write_clean(arguments.clean, split, {split: kept, **others}, found.removed)
    return DONE


def _report_file(arguments: argparse.Namespace) -> int:
    from rl_llm.commands.data_report.biases import Limits, Survey, survey
    from rl_llm.commands.data_report.files import read_data_file, write_rows
    from rl_llm.commands.data_report.grades import check_file, check_sentences
    from rl_llm.rewards.components import Reward
    from rl_llm.rewards.grader import Grader

    report = read_data_file(arguments.experiment, arguments.overrides)
    others = {arguments.without: read_data_file(arguments.without).problems} if arguments.without else {}
    limits = Limits(arguments.max_guesses, arguments.max_answer)
    with Grader(report.task.verify, Reward()) as grader:
        found = survey(grader, report.problems, others, [], 0, limits)
        found = Survey((*report.checks, *found.checks), found.removed, report.notes)
        found = _with(_with(found, check_sentences(report.problems)), *check_file(grader, report.problems))
    title = f"{report.task.name}, {len(report.problems)} problems"
    _publish(arguments, title, arguments.experiment, found, len(report.problems))
    if arguments.clean is not None:
        written = write_rows(arguments.clean, report, found.removed)
        show(f"{arguments.clean}: {written} rows of {arguments.experiment}")
    return DONE


def _with(found: "Survey", check: "Check", note: str = "") -> "Survey":
    return replace(found, checks=(*found.checks, check), notes=(*found.notes, *([note] if note else [])))


def _publish(arguments: argparse.Namespace, title: str, source: str, found: "Survey", total: int) -> None:
    """Show the report and write it, if asked. Raises UsageError if cleaning would leave nothing."""
    _show(title, found)
    if arguments.out is not None:
        arguments.out.write_text(_markdown(f"{title} ({source})", found))
    if arguments.clean is not None and len(found.removed) == total:
        raise UsageError(f"--clean {arguments.clean}: no problem would remain; raise --max-guesses or --max-answer")


def _show(title: str, found: "Survey") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "verdict", "found", "what to do", title=title, title_justify="left")
    for check in found.checks:
        verdict = Text("warning", style="red") if check.advice else "ok"
        table.add_row(check.name, verdict, check.found, check.advice)
    console = make_console()
    console.print(table)
    for note in found.notes:
        console.print(note, soft_wrap=True)
    warnings = sum(bool(check.advice) for check in found.checks)
    console.print(f"{warnings} of {len(found.checks)} checks warn")


def _markdown(title: str, found: "Survey") -> str:
    rows = [(check.name, "warning" if check.advice else "ok", check.found, check.advice) for check in found.checks]
    lines = ["check | verdict | found | what to do", "--- | --- | --- | ---"]
    lines += [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    reasons = Counter(found.removed.values()).most_common()
    removed = "\n".join(f"* {count}: {reason}" for reason, count in reasons) or "* none"
    table = "\n".join(f"| {line} |" for line in lines)
    table += "".join(f"\n\n{note}" for note in found.notes)
    return f"# {title}\n\n{table}\n\nProblems that cleaning removes:\n\n{removed}\n"


def write_clean(path: Path, split: str, pools: Mapping[str, Sequence[Any]], removed: Mapping[int, str]) -> None:
    """Write problems as a file for `JsonlProblems`, and print the numbers of problems left out by reason."""
    from rl_llm.problem import split_of

    reasons, written, lines, elsewhere = Counter(removed.values()), set[str](), [], 0
    for pool, problems in pools.items():
        for problem in problems:
            question = unicodedata.normalize("NFC", problem.prompt).strip()
            answer = problem.answer.strip()
            if not question or not answer or len(answer.splitlines()) > 1 or "####" in answer:
                reasons["cannot be written as a line of JSONL"] += pool == split
                continue
            if question in written:  # JsonlProblems refuses repeated questions
                continue
            written.add(question)
            elsewhere += split_of(question) != pool
            solution, shown = problem.metadata.get("solution", ""), problem.metadata.get("messages", question)
            lines.append(json.dumps({"question": shown, "answer": f"{solution}\n#### {answer}".strip()}) + "\n")
    path.write_text("".join(lines))
    show(f"{path}: {len(lines)} problems, including the other splits")
    for reason, count in reasons.most_common():
        show(f"  {count} {split} problems left out: {reason}")
    if elsewhere:
        show(f"  {elsewhere} problems change their split: JsonlProblems splits by a hash of the question")
