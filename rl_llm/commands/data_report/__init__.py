"""`rl-llm data-report`: check the problems of an experiment's task before a run, without a model."""

import argparse
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_llm.commands.common import DONE, UsageError, add_experiment, check_output, positive, resolve_experiment, share

if TYPE_CHECKING:
    from rl_llm.commands.data_report.biases import Survey

SUMMARY = "find biases, duplicates and leaks in the problems of a task"
GUESSES, ANSWER = 0.10, 0.30  # largest shares of the problems
SEED = 0  # of the problems; the default of `rl-llm train`
EXAMPLES = """examples:
  rl-llm data-report experiments/quickstart.py
  rl-llm data-report experiments/qwen3_4b_gsm8k.py:smoke --out data.md
  rl-llm data-report experiments/qwen3_4b_gsm8k.py:smoke --clean clean.jsonl --max-guesses 0.05"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `data-report`."""
    add_experiment(parser)
    splits = ("train", "validation", "held_out")
    parser.add_argument("--split", choices=splits, default="train", help="split to check (default: train)")
    parser.add_argument("--problems", type=positive, metavar="N", help="number of problems (default: the experiment's)")
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
    difficulty, and how often a run would repeat each problem. The exit code is 0 whatever they find.
    """
    for option in ("out", "clean"):
        check_output(option, getattr(arguments, option))
    if arguments.out is not None and arguments.out == arguments.clean:
        raise UsageError(f"--out and --clean are both {arguments.out}: choose two files")
    from rl_llm.commands.data_report.biases import Limits, survey
    from rl_llm.prepare import counts

    name, experiment = resolve_experiment(arguments.experiment, arguments.overrides)
    asked = counts(experiment) | ({arguments.split: arguments.problems} if arguments.problems else {})
    try:
        pools = {split: experiment.task.problems(split, count, SEED) for split, count in asked.items()}
        problems = pools[arguments.split]
        lengths = [len(experiment.tokenizer.encode_prompt(problem.prompt)) for problem in problems]
        others = {split: found for split, found in pools.items() if split != arguments.split}
        limits = Limits(arguments.max_guesses, arguments.max_answer)
        trained_on = arguments.split == "train" and arguments.problems is None
        prompts = experiment.steps * experiment.prompts_per_step if trained_on else 0
        found = survey(experiment.task, problems, others, lengths, experiment.max_prompt_tokens, limits, prompts)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    kept = [problem for index, problem in enumerate(problems) if index not in found.removed]
    title = f"{experiment.task.name}, {len(problems)} {arguments.split} problems"
    _show(title, found)
    if arguments.out is not None:
        arguments.out.write_text(_markdown(f"{title} ({arguments.experiment}, {name})", found))
    if arguments.clean is not None and not kept:
        raise UsageError(f"--clean {arguments.clean}: no problem would remain; raise --max-guesses or --max-answer")
    if arguments.clean is not None:
        write_clean(arguments.clean, arguments.split, {arguments.split: kept, **others}, found.removed)
    return DONE


def _show(title: str, found: "Survey") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "verdict", "found", "what to do", title=title, title_justify="left")
    for check in found.checks:
        table.add_row(check.name, "[red]warning[/red]" if check.advice else "ok", escape(check.found), check.advice)
    console = Console()
    console.print(table)
    warnings = sum(bool(check.advice) for check in found.checks)
    console.print(f"{warnings} of {len(found.checks)} checks warn", highlight=False)


def _markdown(title: str, found: "Survey") -> str:
    rows = [(check.name, "warning" if check.advice else "ok", check.found, check.advice) for check in found.checks]
    lines = ["check | verdict | found | what to do", "--- | --- | --- | ---"]
    lines += [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    reasons = Counter(found.removed.values()).most_common()
    removed = "\n".join(f"* {count}: {reason}" for reason, count in reasons) or "* none"
    table = "\n".join(f"| {line} |" for line in lines)
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
            solution = problem.metadata.get("solution", "")
            lines.append(json.dumps({"question": question, "answer": f"{solution}\n#### {answer}".strip()}) + "\n")
    path.write_text("".join(lines))
    print(f"{path}: {len(lines)} problems, including the other splits")
    for reason, count in reasons.most_common():
        print(f"  {count} {split} problems left out: {reason}")
    if elsewhere:
        print(f"  {elsewhere} problems change their split: JsonlProblems splits by a hash of the question")
