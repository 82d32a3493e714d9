"""Judged responses from a file: they are learned from as written, and invalid lines are named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import EXPERIMENT

from rl_llm.algorithms import GKD
from rl_llm.experiment import Mixture, RewardModel, StoredResponses, Teacher
from rl_llm.rewards.worker import Grade, failed
from rl_llm.rollout.collect import concatenate, select_groups, with_score
from rl_llm.rollout.engine import GradedRollout
from rl_llm.rollout.offline import read_rollout
from rl_llm.rollout.text import decode_responses

K = 2
TOKENIZER = EXPERIMENT.tokenizer
GOOD = {"prompt": "1+1=", "responses": ["<answer>2</answer>", "<answer>0</answer>"], "rewards": [1, 0.5]}


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def answers_of(path: Path) -> GradedRollout:
    experiment = replace(EXPERIMENT, responses=StoredResponses(str(path)), responses_per_prompt=K)
    return read_rollout(experiment, experiment.responses.problems(K))


def test_judged_responses_are_learned_from_as_written(tmp_path: Path):
    answers = answers_of(written(tmp_path / "a.jsonl", GOOD, GOOD | {"prompt": "2+0="}))
    rollout = answers.rollout
    assert answers.rewards.tolist() == [1.0, 0.5, 1.0, 0.5]
    assert answers.accuracies.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert decode_responses(TOKENIZER, rollout) == GOOD["responses"] * 2
    assert not rollout.truncated.any()
    assert rollout.prompts.lengths.tolist() == [4, 4]


def test_stored_tokens_are_used_unchanged(tmp_path: Path):
    """A response without an end token was truncated; the text is not encoded again."""
    rows = [[5, 6, TOKENIZER.end_id], [7, 7, 7, 7]]
    answers = answers_of(written(tmp_path / "a.jsonl", GOOD | {"tokens": rows}))
    assert [row[: len(given)].tolist() for row, given in zip(answers.rollout.tokens, rows, strict=True)] == rows
    assert answers.rollout.truncated.tolist() == [False, True]


def test_only_top_tokens_of_the_teacher_are_read(tmp_path: Path):
    ids, logps = [[[10, 3, 2]] * 4] * 2, [[[-0.1, -3.0, -4.0]] * 4] * 2
    tokens = {"tokens": [[10, 4, 11, 1]] * 2}
    path = written(tmp_path / "a.jsonl", GOOD | tokens | {"teacher_tokens": ids, "teacher_logp": logps})
    stored = StoredResponses(str(path), top_tokens=2)
    experiment = replace(EXPERIMENT, algorithm=GKD, responses=stored, responses_per_prompt=K)
    rollout = read_rollout(experiment, stored.problems(K)).rollout
    assert rollout.teacher_tokens.shape == (K, EXPERIMENT.sampling.max_tokens, 2)
    np.testing.assert_allclose(rollout.teacher_logp[0, :3], [[-0.1, -3.0]] * 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a.jsonl:2: Expecting property name"),
        ({"prompt": "1+1="}, "a.jsonl:2: 'responses' is missing; a row is"),
        (GOOD | {"rewards": [1]}, "a.jsonl:2 has 2 responses and 1 rewards; expected responses_per_prompt=2 of each"),
        (
            GOOD | {"rewards": ["1", 0]},
            "a.jsonl:2: responses must be a list of texts, rewards a list of numbers",
        ),
        (GOOD | {"rewards": [float("nan"), 0]}, "a.jsonl:2: rewards must be finite"),
        (GOOD | {"responses": [1, 2]}, "a.jsonl:2: responses must be a list of texts"),
        (GOOD | {"tokens": [[1]]}, "a.jsonl:2: tokens must have an entry for each of the 2 responses"),
        (GOOD | {"tokens": [[1], [10**6]]}, "a.jsonl:2: the tokens .*1000000.*ids below"),
        (GOOD | {"tokens": [[1, 5], [5, 1]]}, "a.jsonl:2: the tokens .*the end's only at the end"),
        (GOOD | {"tokens": None}, "a.jsonl:2: tokens must have an entry"),
        (GOOD | {"tokens": [3, 4]}, "a.jsonl:2: the tokens 3: a response has"),
        (GOOD | {"rewards": [1e30, 0]}, "a.jsonl:2: rewards must be finite, at most 1e.18"),
        (GOOD | {"responses": "ab"}, "a.jsonl:2: responses must be a list of texts"),
        (GOOD | {"tokenizer": "another"}, "a.jsonl:2: the tokens come from another tokenizer"),
        (
            GOOD | {"responses": ["<answer>" * 30, "1"]},
            r"a.jsonl:2: the tokens .*: a response has 1 to sampling.max_tokens=16",
        ),
    ],
)
def test_an_invalid_line_is_named(tmp_path: Path, line: Any, message: str):
    with pytest.raises(ValueError, match=message):
        answers_of(written(tmp_path / "a.jsonl", GOOD, line))


PLACES = [[[10, 3]] * 4] * 2
LOGPS = [[[-0.1, -3.0]] * 4] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_tokens": [[[10, 3]] * 3, [[10, 3]] * 4]}, "for each of the 4 tokens of a response, 2 or more ids"),
        ({"teacher_logp": [[[-0.1, -3.0]] * 5, LOGPS[0]]}, "for each of the 4 tokens of a response, 2 or more ids"),
        ({"teacher_logp": "x"}, "teacher_logp must have an entry for each"),
        ({"teacher_tokens": [[[10, 10]] * 4] * 2}, "different ids below the vocabulary's"),
        ({"teacher_tokens": [[[10, 99]] * 4] * 2}, "different ids below the vocabulary's"),
        ({"teacher_tokens": [[[10, 3.5]] * 4] * 2}, "2 or more ids"),
        ({"teacher_logp": [[[0.5, -3.0]] * 4] * 2}, "sum to no more than 1"),
        ({"teacher_logp": [[[float("nan"), -3.0]] * 4] * 2}, "teacher_logp are finite"),
        ({"temperature": 0.5}, "at temperature 0.5, not at sampling.temperature=1.0"),
    ],
)
def test_invalid_logits_are_named_with_their_place(tmp_path: Path, change: dict, message: str):
    stored = StoredResponses(str(tmp_path / "a.jsonl"), top_tokens=2)
    experiment = replace(EXPERIMENT, algorithm=GKD, responses=stored, responses_per_prompt=K)
    good = GOOD | {"tokens": [[10, 4, 11, 1]] * 2, "teacher_tokens": PLACES, "teacher_logp": LOGPS}
    read_rollout(experiment, StoredResponses(str(written(tmp_path / "a.jsonl", good)), 2).problems(K))
    written(tmp_path / "a.jsonl", good, good | change)
    with pytest.raises(ValueError, match=f"a.jsonl:2: .*{message}"):
        read_rollout(experiment, stored.problems(K))


ASKED = [{"role": "user", "content": "1+1="}]


def answered(text: str, *before: dict) -> list[dict]:
    return [*before, *ASKED, {"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "1+1=", "chosen": "2", "rejected": "0", "score_chosen": 9.0},
        {"prompt": ASKED, "chosen": "2", "rejected": "0"},
        {"prompt": ASKED, "chosen": answered("2")[1:], "rejected": answered("0")[1:]},
        {"chosen": answered("2"), "rejected": answered("0")},
        {"prompt": "1+1=", "chosen": answered("2"), "rejected": answered("0"), "tools": None},
    ],
)
def test_preferences_in_trls_layouts_are_pairs_with_rewards(tmp_path: Path, line: Any):
    (found,) = StoredResponses(str(written(tmp_path / "a.jsonl", line))).problems(K)
    assert (found.prompt, found.metadata["responses"], found.metadata["rewards"]) == ("1+1=", ["2", "0"], [1.0, 0.0])


def test_the_prompt_of_two_transcripts_is_what_they_begin_with(tmp_path: Path):
    texts = ("\n\nHuman: 1+1\n\nAssistant: It is 2", "\n\nHuman: 1+1\n\nAssistant: It is 0")
    path = written(tmp_path / "a.jsonl", dict(zip(("chosen", "rejected"), texts, strict=True)))
    (found,) = StoredResponses(str(path)).problems(K)
    assert found.prompt == "\n\nHuman: 1+1\n\nAssistant:"
    assert found.metadata["responses"] == [" It is 2", " It is 0"]


def test_several_messages_of_a_prompt_are_kept_for_the_chat_template(tmp_path: Path):
    brief = {"role": "system", "content": "Be brief."}
    line = {"chosen": answered("2", brief), "rejected": answered("0", brief)}
    (found,) = StoredResponses(str(written(tmp_path / "a.jsonl", line))).problems(K)
    assert found.metadata["messages"] == [brief, *ASKED]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "1", "chosen": "2"}, "'rejected' is missing"),
        ({"prompt": "1", "chosen": "2", "rejected": ""}, "the field 'rejected' is ''"),
        ({"chosen": "2", "rejected": "0"}, "there is no 'prompt'"),
        ({"prompt": "1", "chosen": "2", "rejected": "2"}, "'chosen' and 'rejected' are the same text"),
        ({"chosen": answered("2"), "rejected": answered("0", *answered("1"))}, "answer different prompts"),
        ({"prompt": "2+2=", "chosen": answered("2"), "rejected": answered("0")}, "'prompt' is not the prompt that"),
        ({"chosen": ASKED, "rejected": ASKED}, "'chosen' ends with a message of the user; expected the assistant's"),
        (GOOD | {"chat_template_kwargs": {"enable_thinking": True}}, "'chat_template_kwargs' would change what"),
    ],
)
def test_an_unfit_preference_is_named(tmp_path: Path, line: Any, message: str):
    with pytest.raises(ValueError, match=f"a.jsonl:2: .*{message}"):
        StoredResponses(str(written(tmp_path / "a.jsonl", GOOD, line))).problems(K)


def test_lines_are_those_of_the_file(tmp_path: Path):
    good = json.dumps(GOOD | {"prompt": "a\u2028b\x85c"}, ensure_ascii=False)
    half = json.dumps(GOOD | {"prompt": "\ud800"})
    (tmp_path / "a.jsonl").write_text(f"\ufeff{good}\r\n\n\n{half}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.jsonl:4: .*surrogate"):
        StoredResponses(str(tmp_path / "a.jsonl")).problems(K)


def test_an_empty_file_and_a_missing_one_are_errors(tmp_path: Path):
    with pytest.raises(ValueError, match=r"a\.jsonl is empty"):
        answers_of(written(tmp_path / "a.jsonl"))
    with pytest.raises(FileNotFoundError):
        answers_of(tmp_path / "none.jsonl")


def test_rollouts_are_joined_and_groups_are_picked_row_by_row(tmp_path: Path):
    answers = answers_of(written(tmp_path / "a.jsonl", *(GOOD | {"rewards": [i, i + 0.5]} for i in range(3))))
    both = concatenate(answers, answers)
    assert both.rewards.tolist() == [0, 0.5, 1, 1.5, 2, 2.5] * 2
    some = select_groups(both, np.array([5, 1]), K)
    assert some.rewards.tolist() == [2, 2.5, 1, 1.5]
    assert len(some.responses) == len(some.rollout.tokens) == 4
    assert len(some.rollout.prompts.lengths) == 2


def test_a_reward_models_score_is_the_reward_or_one_component():
    grade = Grade("ok", reward=1.0, accuracy=1.0, components={"accuracy": 1.0})
    assert with_score(grade, 0.25, RewardModel("x", weight=2.0)).reward == 0.5
    added = with_score(grade, 0.25, RewardModel("x", weight=2.0, added=True))
    assert added.reward == 1.5
    assert added.components == {"accuracy": 1.0, "reward_model": 0.25}
    assert with_score(failed("timeout", ""), 9.0, RewardModel("x")).reward == 0.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Mixture(0, 8), "Mixture.per_update=0 is out of range; expected >= 1"),
        (lambda: Teacher("x", on_policy=1.5), "Teacher.on_policy=1.5 is out of range; expected >= 0 and <= 1"),
        (lambda: RewardModel("x", weight=0.0), "weight=0.0 is out of range; expected a finite number except 0"),
        (lambda: StoredResponses("x", -1), "top_tokens=-1 is out of range; expected >= 0"),
    ],
)
def test_values_out_of_range_are_refused(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()
