"""One line per sampled response of an evaluation: as JSONL, as parquet, and as lm-evaluation-harness writes them."""

import json
from collections.abc import Hashable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from rl_llm.experiment.suite import SHOWN, Suite
from rl_llm.parallel import hosts
from rl_llm.problem import Problem
from rl_llm.rollout.engine import GradedRollout
from rl_llm.runs.files import json_line
from rl_llm.tasks.answers import extract_answer, is_numeric
from rl_llm.tasks.answers.numbers import undress
from rl_llm.tasks.tables import import_extra

SAMPLES, PARQUET = "samples.jsonl", "samples.parquet"
Line = dict[str, Any]


def answer_of(task: Any, gold: str, response: str) -> str | None:
    """Text that is taken for the final answer of a response; None if it has none."""
    return extract_answer(response, getattr(task, "marks", ("answer_tag",)), is_numeric(gold))


def lines_of(suite: Suite, problems: Sequence[Problem], graded: GradedRollout) -> list[Line]:
    """Lines of the responses to `problems`, the first of a rollout, in order. All processes must call it."""
    K = len(graded.responses) // len(graded.problems)
    mask, truncated = hosts.to_host((graded.rollout.mask, graded.rollout.truncated))
    tokens = mask.sum(axis=1).astype(int).tolist()
    lines = []
    for row in range(len(problems) * K):
        problem, grade, response = problems[row // K], graded.grades[row], graded.responses[row]
        end = suite.end(response)
        response, ok = response[:end], grade.status == "ok"
        lines.append(
            {
                "suite": suite.name,
                "problem": problem.id,
                "sample": row % K,
                "prompt": shown(problem),
                "gold": problem.answer,
                "response": response,
                "answer": answer_of(suite.task, problem.answer, response),
                "grade": grade.accuracy if ok else None,
                "reward": grade.reward if ok else None,
                "components": grade.components,
                "status": grade.status,
                "message": grade.message,
                "tokens": tokens[row],
                "finish_reason": "length" if truncated[row] and end is None else "stop",
            }
        )
    return lines


def shown(problem: Problem) -> str | list[dict[str, str]]:
    """The prompt as the chat template or the model receives it: a text, or several messages."""
    messages = problem.metadata.get("messages")
    return [dict(message) for message in messages] if messages else str(problem.metadata.get(SHOWN, problem.prompt))


def by_problem(lines: Sequence[Line]) -> tuple[list[np.ndarray], list[list[Hashable | None]]]:
    """Grades and votes of each problem's samples. What could not be graded is wrong.

    Right answers are one answer, however they are written; wrong ones are told apart by their spelling.
    """
    grades: dict[int, list[float]] = {}
    votes: dict[int, list[Hashable | None]] = {}
    for line in lines:
        right = (line["grade"] or 0.0) >= 1.0
        vote = True if right else line["answer"] and undress(line["answer"]).casefold()
        grades.setdefault(line["problem"], []).append(line["grade"] or 0.0)
        votes.setdefault(line["problem"], []).append(vote)
    return [np.array(found) for found in grades.values()], list(votes.values())


def write_parquet(path: Path, lines: Iterable[Line]) -> None:
    """Write lines as a parquet file; prompts of several messages are JSON. Needs pyarrow (the extra `data`)."""
    pyarrow = import_extra("pyarrow")
    text, number, whole = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    kinds = {"problem": whole, "sample": whole, "tokens": whole, "grade": number, "reward": number}
    kinds["components"] = pyarrow.map_(text, number)
    rows = [
        {
            **line,
            "prompt": _as_text(line["prompt"]),
            "components": list(line["components"].items()),
        }
        for line in lines
    ]
    schema = pyarrow.schema([(name, kinds.get(name, text)) for name in rows[0]])
    import_extra("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)


def write_lm_eval(folder: Path, lines: Sequence[Line]) -> None:
    """Write samples_SUITE_TIME.jsonl for each suite, as `lm_eval --log_samples` does.

    A line is one sample of one problem. The k-th samples of all problems have the filter "sample-k".
    """
    time = datetime.now().isoformat(timespec="microseconds").replace(":", "-")
    for suite in dict.fromkeys(line["suite"] for line in lines):
        own = [line for line in lines if line["suite"] == suite]
        ids = {problem: index for index, problem in enumerate(dict.fromkeys(line["problem"] for line in own))}
        rows = [_lm_eval_line(ids[line["problem"]], line) for line in own]
        (folder / f"samples_{suite}_{time}.jsonl").write_bytes(b"".join(map(json_line, rows)))


def _lm_eval_line(index: int, line: Line) -> Line:
    return {
        "doc_id": index,
        "doc": {"question": line["prompt"], "answer": line["gold"]},
        "target": line["gold"],
        "arguments": [[_as_text(line["prompt"]), {}]],
        "resps": [[line["response"]]],
        "filtered_resps": [line["answer"] or "[invalid]"],
        "filter": f"sample-{line['sample']}",
        "metrics": ["exact_match"],
        "exact_match": line["grade"] or 0.0,
    }


def _as_text(prompt: str | list[dict[str, str]]) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt)
