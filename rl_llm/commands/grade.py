"""`rl-llm grade`: grade stored responses, to check a verifier and its reward before a run pays for them."""

import argparse
import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rl_llm.commands.common import DONE, FAILED, UsageError, check_output, positive, resolve_experiment
from rl_llm.config.terminal import show

if TYPE_CHECKING:
    from rl_llm.experiment import Experiment
    from rl_llm.problem import Problem
    from rl_llm.rewards.components import Reward
    from rl_llm.rewards.worker import Grade, Verify

SUMMARY = "grade stored responses, and show what was taken for their answers"
EXAMPLES = """examples:
  rl-llm grade responses.jsonl --out grades.jsonl              lines {"gold": "1/2", "response": "... \\\\boxed{0.5}"}
  rl-llm grade responses.jsonl.gz --out grades.jsonl --workers 8
  rl-llm grade samples.jsonl --task experiments/qwen3_4b_gsm8k.py:paper --set task.path=train.jsonl --out grades.jsonl

a line of grades.jsonl, here of a response that is wrong:
  {"gold": "1/2", "response": "... \\\\boxed{2}", "grade": 0.0, "answer": "2"}"""

PROMPTS, GOLDS, RESPONSES = ("prompt", "question", "problem"), ("gold", "answer"), ("response", "completion")
PORTION = 1024  # responses between two updates of the progress display
SHOWN = 10  # disagreements


class Item(NamedTuple):
    """One line to grade."""

    place: str
    fields: Mapping[str, Any]
    problem: "Problem"
    response: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `grade`."""
    file = "stored responses, one a line: JSONL, CSV, parquet (also .gz)"
    parser.add_argument("file", type=Path, metavar="FILE", help=file)
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="file to write: the lines with grades")
    task = "grade by the verifier and the reward of an experiment's task (default: the answers of text tasks)"
    parser.add_argument("--task", metavar="EXPERIMENT[:NAME]", help=task)
    change = "with --task: change one value of the experiment; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="a.b=v", dest="overrides", help=change)
    workers = "grading processes (default: 2, or the experiment's)"
    parser.add_argument("--workers", type=positive, metavar="N", help=workers)


def run(arguments: argparse.Namespace) -> int:
    """Grade stored responses as a run would grade them.

    A line of FILE is {"gold": ..., "response": ...}: the gold answer, or a text that ends in it (\\boxed{...}, "####
    42"), and the response of a model. "answer" may stand for "gold" and "completion" for "response". With --task a line
    may have the task's prompt ("prompt", "question" or "problem") instead of the gold.

    A line of OUT has all fields of its line in FILE, and "grade", the verifier's score from 0 to 1, and "answer", the
    text that was taken for the final answer, or null (it replaces an "answer" in FILE, kept as "gold"). With --task it
    also has "reward". Where grading failed, "grade" is null, and "status" and "message" say why.

    The summary shows the share of right answers. If the lines have "right" (true, false, 1 or 0), it shows how often
    the grade agrees, and the first disagreements: read them, to see which of the two is wrong.
    """
    check_output("out", arguments.out)
    if arguments.overrides and arguments.task is None:
        raise UsageError(f"--set {arguments.overrides[0]} cannot act without --task EXPERIMENT")
    from rl_llm.rewards.components import Reward
    from rl_llm.rewards.grader import GradingError
    from rl_llm.tasks.datasets import JsonlProblems

    task: Any = JsonlProblems(arguments.file)
    reward, workers, time_limit, known = Reward(), arguments.workers or 2, 5.0, None
    try:
        if arguments.task is not None:
            _, experiment = resolve_experiment(arguments.task, arguments.overrides)
            task, reward, time_limit = experiment.task, experiment.reward, experiment.grading.time_limit
            workers = arguments.workers or experiment.grading.workers
            known = cache(lambda: _problems_by_prompt(experiment))
        items = list(_read(arguments.file, known))
        if isinstance(task, JsonlProblems):
            task.expect(item.problem.answer for item in items)
        grades = _grade(items, task.verify, reward, workers, time_limit)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    except GradingError as error:
        show(f"rl-llm grade: {error}", file=sys.stderr)
        return FAILED
    lines = [_line(item, grade, task, arguments.task is not None) for item, grade in zip(items, grades, strict=True)]
    with arguments.out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
    show(*_summary(items, lines, grades))
    return DONE


def _problems_by_prompt(experiment: "Experiment") -> "Mapping[str, Problem]":
    """Problems of the experiment's task: all of a data file, else those that a run with seed 0 would draw."""
    from rl_llm.prepare import counts
    from rl_llm.tasks.datasets import JsonlProblems

    task, wanted = experiment.task, counts(experiment)
    if isinstance(task, JsonlProblems):
        wanted = dict.fromkeys(wanted, sys.maxsize)
    found = (problem for split, count in wanted.items() for problem in task.problems(split, count, seed=0))
    return {problem.prompt.strip(): problem for problem in found}


def _read(path: Path, known: "Callable[[], Mapping[str, Problem]] | None") -> Iterator[Item]:
    """Read the lines of a file. Raises ValueError naming the place and the remedy, and FileNotFoundError."""
    from rl_llm.tasks.tables import read_files, rows_of

    files = read_files(path, f"{path} is not a file; give a file with a response on each line")
    for place, fields in rows_of(files):
        try:
            if isinstance(fields, ValueError):
                raise fields
            yield Item(place, _labelled(fields), _problem(fields, known), _response(fields))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error


def _labelled(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields with "right" as true or false, if it is there; 1 and 0 stand for them, as in CSV files."""
    label = fields.get("right")
    if label in (None, "") or isinstance(label, bool):
        return fields
    words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    if str(label).lower() not in words:
        raise ValueError(f'"right" is {label!r}; expected true, false, 1 or 0')
    return {**fields, "right": words[str(label).lower()]}


def _problem(fields: Mapping[str, Any], known: "Callable[[], Mapping[str, Problem]] | None") -> "Problem":
    from rl_llm.problem import Problem, problem_id
    from rl_llm.tasks.answers import equal_answers, split_gold
    from rl_llm.tasks.layouts import written_answer
    from rl_llm.tasks.messages import prompt_of

    given = _first(fields, GOLDS)
    gold = None if given is None else split_gold(written_answer(given, "gold"))[1]
    prompt = next((prompt_of(fields[name], name)[0] for name in PROMPTS if fields.get(name)), "")
    prompt = unicodedata.normalize("NFC", prompt).strip()
    problem = known().get(prompt) if known is not None and prompt else None
    if problem is None and gold is None:
        fit = "" if known is None else f", and its prompt {prompt[:60]!r} is none of the {len(known())} of the task"
        there = ", ".join(fields) or "none"
        raise ValueError(f"there is no gold answer in the fields {there}{fit}; expected a field {' or '.join(GOLDS)}")
    if problem is None:
        return Problem(problem_id("grade", prompt), prompt, gold or "", metadata=fields.get("metadata") or {})
    if gold is not None and gold != problem.answer and not equal_answers(gold, problem.answer):
        raise ValueError(f"the gold answer is {gold!r}, but {problem.answer!r} in the task; correct one of them")
    return problem


def _response(fields: Mapping[str, Any]) -> str:
    if all(fields.get(name) is not None for name in RESPONSES):
        raise ValueError(f"a line has either {' or '.join(map(repr, RESPONSES))}; remove one")
    response = _first(fields, RESPONSES)
    if isinstance(response, list) and response and isinstance(response[-1], dict):  # messages
        response = response[-1].get("content")
    if not isinstance(response, str):
        there = ", ".join(fields) or "none"
        raise ValueError(f"there is no response in the fields {there}; expected a text in {' or '.join(RESPONSES)}")
    return response


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _grade(items: list[Item], verify: "Verify", reward: "Reward", workers: int, time_limit: float) -> "list[Grade]":
    """Grade in processes of their own, with a progress bar."""
    from rl_llm.rewards.grader import Grader
    from rl_llm.runs.progress import Progress

    grades: list[Grade] = []
    grader = Grader(verify, reward, workers, time_limit)
    with grader, Progress() as progress, progress.phase("grade", len(items)) as phase:
        for start in range(0, len(items), PORTION):
            portion = items[start : start + PORTION]
            grades += grader.grade([item.problem for item in portion], [item.response for item in portion])
            phase.update(len(grades))
    return grades


def _line(item: Item, grade: "Grade", task: Any, with_reward: bool) -> dict[str, Any]:
    """Make the line of OUT: the fields of the line in FILE and the result."""
    from rl_llm.tasks.answers import extract_answer, is_numeric

    gold = item.problem.answer
    answer = extract_answer(item.response, getattr(task, "marks", ("answer_tag",)), is_numeric(gold))
    line: dict[str, Any] = {**item.fields, "grade": None, "answer": answer}
    if "answer" in item.fields:
        line["gold"] = item.fields.get("gold", item.fields["answer"])
    if grade.status != "ok":
        return {**line, "status": grade.status, "message": grade.message}
    return {**line, "grade": grade.accuracy, **({"reward": grade.reward} if with_reward else {})}


def _summary(items: Sequence[Item], lines: Sequence[Mapping[str, Any]], grades: "Sequence[Grade]") -> Iterator[str]:
    """Yield the lines of the summary."""
    graded = [line["grade"] for line in lines if line["grade"] is not None]
    right = sum(grade >= 1.0 for grade in graded)
    yield f"{len(lines)} responses, {right} right ({right / max(1, len(graded)):.2%} of those graded)"
    missing = sum(line["answer"] is None for line in lines)
    if missing:
        yield f"{missing} without a final answer"
    for status, count in Counter(grade.status for grade in grades if grade.status != "ok").items():
        index = next(index for index, grade in enumerate(grades) if grade.status == status)
        yield f"{count} not graded: {status}; the first: {items[index].place}: {grades[index].message}"
    labelled = [(item, line) for item, line in zip(items, lines, strict=True) if isinstance(line.get("right"), bool)]
    wrong = [(item, line) for item, line in labelled if line["right"] != ((line["grade"] or 0.0) >= 1.0)]
    if labelled:
        same = len(labelled) - len(wrong)
        yield f'agrees with "right" on {same} of {len(labelled)} ({same / len(labelled):.2%})'
    for item, line in wrong[:SHOWN]:
        label, gold = "right" if line["right"] else "wrong", item.problem.answer
        yield f"  {item.place}: labelled {label}, graded {line['grade']}; gold {gold!r}, answer {line['answer']!r}"
    if len(wrong) > SHOWN:
        yield f"  and {len(wrong) - SHOWN} more"
