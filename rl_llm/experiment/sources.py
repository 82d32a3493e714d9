"""What a run can learn from besides what its own responses earn: demonstrations, stored responses, a teacher, a reward
model. Each is a value of an experiment; folders are those of other runs.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_llm.learner.optimizer import AdamW
from rl_llm.problem import Problem, problem_id
from rl_llm.rewards.worker import LARGEST_REWARD


def at_least(component: Any, minimum: int, *names: str) -> None:
    """Raise ValueError naming a field of a component that is less than `minimum`."""
    for name in names:
        if getattr(component, name) < minimum:
            place = f"{type(component).__name__}.{name}"
            raise ValueError(f"{place} must be at least {minimum}, not {getattr(component, name)}")


@dataclass(frozen=True)
class SkillGate:
    """RL can only select what the policy sometimes does. Before it starts, the policy must reach `minimum` accuracy
    (sampled, validation problems) when its response is made to begin with `prefix`, here: when it is made to think in
    writing.
    """

    prefix: str
    minimum: float

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= 1:
            raise ValueError(f"SkillGate.minimum is an accuracy between 0 and 1, not {self.minimum}")


@dataclass(frozen=True)
class Conversations:
    """Chats or prompt/response pairs of a JSONL file. A line is {"prompt": "...", "response": "..."} or {"messages":
    [{"role": "user", "content": "..."}, ...]}, in the tokenizer's chat template. What is learned is what the assistant
    says, with the token that ends it; every token of a step weighs the same.

    Conversations are packed: an update learns `rows_per_step` rows of `row_tokens` tokens, each of as many whole
    conversations as fit into it (the first row with room takes them, in an order that seed and epoch give), none of
    which sees another. Metric "packing/filled": the share of the rows that holds tokens.

    micro_batches: parts in which the rows of an update are read, to fit memory; they change nothing else. data_dir:
    where the prepared copy is kept, by default the folder `.tfds` beside the file. Needs the extra `data`.
    """

    path: str | Path
    rows_per_step: int
    row_tokens: int
    micro_batches: int = 1
    data_dir: str | Path | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "rows_per_step", "micro_batches")
        at_least(self, 2, "row_tokens")
        if self.rows_per_step % self.micro_batches:
            raise ValueError(
                f"Conversations.rows_per_step={self.rows_per_step} must be a multiple of micro_batches="
                f"{self.micro_batches}"
            )


@dataclass(frozen=True)
class WarmStart:
    """Supervised learning before RL, in `steps` updates: on the `demonstrations` of a file, or else on the task's own
    (`task.demonstrate(problem, generator)`), those of `demonstrations_per_step` problems an update, responses padded to
    `max_tokens`.
    """

    steps: int
    optimizer: AdamW
    demonstrations_per_step: int | None = None
    max_tokens: int | None = None
    gate: SkillGate | None = None
    demonstrations: Conversations | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "steps")
        self.optimizer.check(self.steps)
        for name in ("demonstrations_per_step", "max_tokens"):
            if self.demonstrations is None:
                if getattr(self, name) is None:
                    raise ValueError(f"WarmStart.{name} is missing: the task's own demonstrations need it")
                at_least(self, 1, name)
            elif getattr(self, name) is not None:
                raise ValueError(
                    f"WarmStart.{name}={getattr(self, name)} cannot act beside demonstrations of a file: "
                    "demonstrations.rows_per_step and row_tokens say how many there are, and how long"
                )


@dataclass(frozen=True)
class Mixture:
    """Beside reinforcement learning, the policy learns at every update from `per_update` of the task's demonstrations:
    `coefficient` times the mean of -log pi over their tokens is added to the loss (as the SFT term of LUFFY-like and
    CHORD-like mixtures, arXiv 2508.11408). Responses are padded to `max_tokens`.
    """

    per_update: int
    max_tokens: int
    coefficient: float = 0.1

    def __post_init__(self) -> None:
        if self.per_update < 1 or self.max_tokens < 1 or not 0 < self.coefficient < math.inf:
            raise ValueError(f"Mixture needs per_update and max_tokens >= 1 and coefficient > 0, not {self}")


@dataclass(frozen=True)
class Teacher:
    """The policy of another run, with the same tokenizer, to be distilled (its model may be larger).

    Its log-probability of each token is batch.ref_logp (for ReverseKL), its `top_tokens` likeliest tokens at each place
    are batch.teacher_tokens and teacher_logp (for Distillation). The responses of a step are the policy's own with
    probability `on_policy`, else the teacher's (lambda of GKD, arXiv 2306.13649, algorithm 1).
    """

    run: str
    top_tokens: int = 0
    on_policy: float = 1.0

    def __post_init__(self) -> None:
        if self.top_tokens < 0 or not 0 <= self.on_policy <= 1:
            raise ValueError(f"Teacher needs top_tokens >= 0 and 0 <= on_policy <= 1, not {self}")


@dataclass(frozen=True)
class RewardModel:
    """The critic of another run, which learned from preferences (BradleyTerry): its score of a response, the value at
    the last token, times `weight` is the reward of RL (InstructGPT, arXiv 2203.02155), or with `added` a
    further component of it. Metric "component/reward_model"; accuracy is measured all the same.
    """

    run: str
    weight: float = 1.0
    added: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight) or self.weight == 0:
            raise ValueError(f"RewardModel.weight must be finite and not 0, not {self.weight}")


@dataclass(frozen=True)
class StoredResponses:
    """Responses that were sampled and judged before, in the place of the policy's own: learning from them is offline.

    A line of the file is {"prompt": "...", "responses": ["...", ...], "rewards": [1.0, ...]}, the responses as many as
    `responses_per_prompt`; a preference is a line of two with rewards 1 and 0. `rl-llm evaluate RUN --samples FILE`
    writes such a file; with `--logits k` it also has "teacher_tokens" and "teacher_logp" (k a token), to be distilled
    from without the teacher (`top_tokens` of them are read), and "tokens", the ids that were sampled.
    """

    path: str
    top_tokens: int = 0

    def __post_init__(self) -> None:
        if self.top_tokens < 0:
            raise ValueError(f"StoredResponses.top_tokens must be at least 0, not {self.top_tokens}")

    def problems(self, responses_per_prompt: int) -> list[Problem]:
        """The lines as problems, the responses with all that belongs to them in `metadata`.

        Raises ValueError naming the file and the line that does not serve, OSError without a file.
        """
        try:
            lines = [line for line in Path(self.path).read_text().splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is no text in UTF-8: {error}") from error
        found = [self._problem(line, number, responses_per_prompt) for number, line in enumerate(lines, 1)]
        if not found:
            raise ValueError(f"{self.path} has no stored responses: it is empty")
        return found

    def _problem(self, line: str, number: int, K: int) -> Problem:
        place = f"{self.path}, line {number}"
        try:
            item = json.loads(line)
            prompt, responses, rewards = item["prompt"], item["responses"], item["rewards"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f'{place}: {error!r}; a line is {{"prompt": ..., "responses": [...], "rewards": [...]}}'
            ) from error
        if not isinstance(prompt, str) or not _all(responses, str) or not _all(rewards, int, float):
            raise ValueError(f"{place}: prompt is a text, responses are texts and rewards numbers")
        if not all(abs(reward) <= LARGEST_REWARD for reward in rewards):
            raise ValueError(f"{place}: rewards must be finite, and not above {LARGEST_REWARD:g}: {rewards}")
        if not len(responses) == len(rewards) == K:
            raise ValueError(
                f"{place}: {len(responses)} responses with {len(rewards)} rewards; responses_per_prompt={K} wants {K} "
                "of each"
            )
        wanted = ("teacher_tokens", "teacher_logp") if self.top_tokens else ()
        for name in (*wanted, *(["tokens"] if "tokens" in item else [])):
            if not isinstance(item.get(name), list) or len(item[name]) != K:
                raise ValueError(f"{place}: {name} must have an entry for each of the {K} responses")
        names = ("responses", "rewards", "tokens", "tokenizer", "temperature", *wanted)
        kept = {name: item[name] for name in names if name in item} | {"place": place}
        return Problem(problem_id(str(number), prompt), prompt, answer="", metadata=kept)


def _all(values: Any, *kinds: type) -> bool:
    return isinstance(values, list) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
