"""`rl-llm data-report`: what is wrong with the problems of an experiment's task, before a run and without a model."""

import argparse
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_llm.commands.common import DONE, UsageError, add_experiment, load, share

SUMMARY = "find biases, duplicates and leaks in the problems of a task"
GUESSES, ANSWER = 0.10, 0.30  # largest shares of the problems
SEED = 0  # of the problems, as `rl-llm train` has it where none is given
EXAMPLES = """examples:
  rl-llm data-report experiments/quickstart.py
  rl-llm data-report experiments/qwen3_4b_gsm8k.py:smoke --out data.md
  rl-llm data-report experiments/qwen3_4b_gsm8k.py:smoke --clean clean.jsonl --max-guesses 0.05"""


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    add_experiment(parser)
    parser.add_argument("--split", choices=("train", "validation", "held_out"), default="train")
    parser.add_argument("--problems", type=int, metavar="N", help="how many problems (default: as in the experiment)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report there, too, as Markdown")
    parser.add_argument(
        "--clean",
        type=Path,
        metavar="FILE",
        help="write the problems that are left there, with those of the other splits that a run uses: a JSONL task",
    )
    for name, default, what in (
        ("--max-guesses", GUESSES, "answered by True/False, Yes/No or an option's letter"),
        ("--max-answer", ANSWER, "with one and the same answer"),
    ):
        helped = f"largest share of problems {what} (default: {default})"
        parser.add_argument(name, type=share, default=default, metavar="SHARE", help=helped)


def run(arguments: argparse.Namespace) -> int:
    """Look at the problems that a run would ask, one check a line, each with a verdict and what to do: answers that are
    skewed or can be guessed, duplicates, leaks into other splits, answers in prompts, lengths, difficulty, and whether
    a run would ask the same ones again and again.

    The exit code is 0 whatever was found.
    """
    if arguments.problems is not None and arguments.problems < 1:
        raise UsageError(f"--problems must be at least 1, not {arguments.problems}")
    for option in ("out", "clean"):
        path = getattr(arguments, option)
        if path is not None and path.exists():
            raise UsageError(f"{path} is there already: choose another --{option}")
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"--{option} {path}: there is no folder {path.parent}")
    if arguments.out is not None and arguments.out == arguments.clean:
        raise UsageError(f"--out and --clean are both {arguments.out}: choose two files")
    from rl_llm.prepare import counts
    from rl_llm.tasks.biases import Limits, survey

    name, experiment = load(arguments.experiment, arguments.overrides)
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
    kept = [problem for place, problem in enumerate(problems) if place not in found.removed]
    title = f"{experiment.task.name}, {len(problems)} {arguments.split} problems"
    _show(title, found)
    if arguments.out is not None:
        arguments.out.write_text(_markdown(f"{title} ({arguments.experiment}, {name})", found))
    if arguments.clean is not None and not kept:
        raise UsageError(f"--clean {arguments.clean}: no problem would be left; raise --max-guesses or --max-answer")
    if arguments.clean is not None:
        write_clean(arguments.clean, arguments.split, {arguments.split: kept, **others}, found.removed)
    return DONE


def _show(title: str, found: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "verdict", "found", "what to do", title=title, title_justify="left")
    for check in found.checks:
        table.add_row(check.name, "[red]warning[/red]" if check.advice else "ok", _plain(check.found), check.advice)
    console = Console()
    console.print(table)
    warnings = sum(bool(check.advice) for check in found.checks)
    console.print(f"{warnings} of {len(found.checks)} checks warn", highlight=False)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _markdown(title: str, found: Any) -> str:
    rows = [(check.name, "warning" if check.advice else "ok", check.found, check.advice) for check in found.checks]
    lines = ["check | verdict | found | what to do", "--- | --- | --- | ---"]
    lines += [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    reasons = Counter(found.removed.values()).most_common()
    removed = "\n".join(f"* {count}: {reason}" for reason, count in reasons) or "* none"
    table = "\n".join(f"| {line} |" for line in lines)
    return f"# {title}\n\n{table}\n\nProblems that cleaning leaves out:\n\n{removed}\n"


def write_clean(path: Path, split: str, pools: Mapping[str, Sequence[Any]], removed: Mapping[int, str]) -> None:
    """Write a file that `JsonlProblems` reads, and say what was left out of it."""
    from rl_llm.problem import split_of

    reasons, written, lines, elsewhere = Counter(removed.values()), set[str](), [], 0
    for pool, problems in pools.items():
        for problem in problems:
            question = unicodedata.normalize("NFC", problem.prompt).strip()
            answer = problem.answer.strip()
            if not question or not answer or len(answer.splitlines()) > 1 or "####" in answer:
                reasons["what a line of JSONL cannot hold"] += pool == split
                continue
            if question in written:  # JsonlProblems refuses a question that stands there twice
                continue
            written.add(question)
            elsewhere += split_of(question) != pool
            solution = problem.metadata.get("solution", "")
            lines.append(json.dumps({"question": question, "answer": f"{solution}\n#### {answer}".strip()}) + "\n")
    path.write_text("".join(lines))
    print(f"{path}: {len(lines)} problems, with those of the other splits")
    for reason, count in reasons.most_common():
        print(f"  {count} {split} problems left out: {reason}")
    if elsewhere:
        print(f"  {elsewhere} problems come into another split there: JsonlProblems splits by the question's hash")
