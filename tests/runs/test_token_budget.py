"""A token budget ends RL after the step that reaches it, also in a resumed run."""

import re
from dataclasses import replace
from typing import Any

import pytest
from program import EXPERIMENT, Finished, train, without_time

from rl_llm.algorithms import PPO
from rl_llm.experiment import StoredResponses
from rl_llm.learner.critic import Critic
from rl_llm.learner.optimizer import AdamW

CONSTANT = ("--set", "optimizer.schedule=constant", "--set", "staleness=1", "--set", "checkpointing.every=1")
BUDGET = 700  # the six steps generate some 1,500 tokens


def steps_of(run: Finished) -> list[dict[str, Any]]:
    return [line for line in without_time(run.metrics) if line["phase"] == "rl"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return train(tmp_path_factory.mktemp("whole") / "run", *CONSTANT)


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return train(tmp_path_factory.mktemp("budgeted") / "run", *CONSTANT, "--set", f"token_budget={BUDGET}")


@pytest.mark.slow
def test_a_run_with_a_budget_is_the_start_of_the_run_without_one(whole: Finished, budgeted: Finished):
    steps = steps_of(budgeted)
    assert steps == steps_of(whole)[: len(steps)]
    assert 1 < len(steps) < len(steps_of(whole))
    assert steps[-2]["tokens/total"] < BUDGET <= steps[-1]["tokens/total"]
    assert budgeted.summary["tokens_generated"] == steps[-1]["tokens/total"]


@pytest.mark.slow
def test_a_run_that_spent_its_budget_is_not_continued(budgeted: Finished):
    again = train(budgeted.folder, *CONSTANT, "--set", f"token_budget={BUDGET}", "--resume")
    assert steps_of(again) == steps_of(budgeted)
    assert again.summary["state_sha256"] == budgeted.summary["state_sha256"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_budget": 0}, "token_budget=0 is out of range; expected >= 1"),
        ({"token_budget": 9}, "optimizer.schedule='linear' falls until the last of steps=6"),
        (
            {
                "token_budget": 9,
                "optimizer": AdamW(1e-2),
                "algorithm": PPO,
                "critic": Critic(AdamW(1e-2, schedule="cosine")),
            },
            "critic.optimizer.schedule='cosine' falls until the last",
        ),
        (
            {"token_budget": 9, "optimizer": AdamW(1e-2), "responses": StoredResponses("judged.jsonl")},
            "token_budget=9 cannot act: the responses are stored",
        ),
    ],
)
def test_a_budget_that_cannot_act_or_cuts_a_schedule_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(EXPERIMENT, **changes)
