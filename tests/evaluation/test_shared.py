"""Problems of suites are found in everything that a run learns from, and in nothing else."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rl_llm.algorithms import REJECTION_SAMPLING
from rl_llm.commands.data_report.suites import check_suites
from rl_llm.evaluation.shared import learned_problems, learned_texts, lost_rows, shared_problems
from rl_llm.experiment import Conversations, Experiment, Mixture, StoredResponses, Suite
from rl_llm.tasks.datasets import JsonlProblems
from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from tests.data import tiny

TOKENIZER = str(Path(__file__).parents[1] / "data" / "tokenizers" / "qwen3")
LONG = "A farmer has 12 cows and 7 sheep. How many animals does the farmer have in all?"
SHORT = "Two and two?"


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def offline(folder: Path, *prompts: str) -> Experiment:
    """An experiment that learns from stored responses to these prompts, and from no problem of its task."""
    rows = [{"prompt": prompt, "responses": ["1", LONG], "rewards": [1.0, 0.0]} for prompt in prompts]
    stored = StoredResponses(write(folder / "stored.jsonl", *rows))
    return replace(
        tiny.cold, responses=stored, responses_per_prompt=2, algorithm=REJECTION_SAMPLING, updates_per_rollout=1
    )


def conversing(folder: Path, *prompts: str) -> Experiment:
    """An experiment with a warm start on these prompts."""
    rows = [{"prompt": prompt, "response": "1"} for prompt in prompts]
    file = Conversations(write(folder / "warm.jsonl", *rows), row_tokens=500, rows_per_step=8)
    start = replace(tiny.base.warm_start, demonstrations=file, demonstrations_per_step=None, max_tokens=None, gate=None)
    return replace(tiny.cold, warm_start=start, tokenizer=HuggingFaceTokenizer(TOKENIZER, chat=True))


def notes(experiment: Experiment, folder: Path, *questions: str) -> list[str]:
    """Notes on a suite of these questions."""
    file = write(folder / "suite.jsonl", *({"question": text, "answer": "#### 4"} for text in questions))
    suite = Suite("asked", JsonlProblems(file, split="all"))
    problems = learned_problems(experiment, 0) | {suite.key: suite.ask()}
    return list(shared_problems(experiment, [suite], problems))


@pytest.mark.parametrize("make", [offline, conversing])
@pytest.mark.parametrize("seen", [SHORT, SHORT.upper(), f"Question: {LONG}\nAnswer in one number."])
def test_problems_are_found_among_stored_prompts_and_conversations(
    make: Callable[..., Experiment], seen: str, tmp_path: Path
):
    (note,) = notes(make(tmp_path, "1+1=", seen), tmp_path, LONG if LONG in seen else SHORT, "Three and three?")
    assert note.startswith("suite asked: the run learns from 1 of its 2 problems")


def test_messages_of_a_conversation_are_searched_one_by_one(tmp_path: Path):
    experiment = conversing(tmp_path, "1+1=")
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SHORT}]
    write(tmp_path / "warm.jsonl", {"messages": [*said, {"role": "assistant", "content": "4"}]})
    assert len(notes(experiment, tmp_path, SHORT)) == 1


def test_problems_of_the_task_count_only_if_the_run_learns_them(tmp_path: Path):
    question = tiny.TASK.problems("train", tiny.cold.train_problems, 0)[0].prompt
    stored = offline(tmp_path, "one", "two")
    assert len(notes(tiny.cold, tmp_path, question)) == 1
    assert notes(stored, tmp_path, question) == []
    mixed = replace(stored, mixture=Mixture(per_update=8, max_tokens=28))
    assert len(notes(mixed, tmp_path, question)) == 1


def test_stored_responses_are_texts_to_search(tmp_path: Path):
    experiment = offline(tmp_path, "one")
    assert learned_texts(experiment, learned_problems(experiment, 0)) == ["one", "1", LONG]


def test_repeated_and_contradictory_rows_are_noted(tmp_path: Path):
    rows = [{"question": text, "answer": f"#### {answer}"} for text, answer in ((SHORT, 4), (SHORT, 4), (LONG, 19))]
    suite = Suite("asked", JsonlProblems(write(tmp_path / "rows.jsonl", *rows), split="all"))
    assert "the 3 rows of" in (lost_rows(suite, suite.ask()) or "")
    once = Suite("asked", JsonlProblems(write(tmp_path / "once.jsonl", *rows[1:]), split="all"))
    assert lost_rows(once, once.ask()) is None
    disputed = write(tmp_path / "disputed.jsonl", rows[0], {**rows[0], "answer": "#### 5"})
    with pytest.raises(ValueError, match="has no problem left: each of its questions has several answers"):
        Suite("asked", JsonlProblems(disputed, split="all")).ask()


def test_the_data_report_searches_stored_prompts(tmp_path: Path):
    file = write(tmp_path / "gsm8k.jsonl", *({"question": text, "answer": "#### 4"} for text in (LONG, SHORT)))
    ((check, note),) = check_suites(offline(tmp_path, SHORT), [f"gsm8k={file}"], 0)
    assert (check.found, bool(check.advice)) == ("2 of 2 problems (100.0%) are in the training data", True)
    assert "'Two and two?': 'two and two' in 'Two and two?'" in note
