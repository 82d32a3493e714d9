"""Sources of learning besides a policy's own responses: demonstrations, stored responses, a teacher, a reward model."""

import math
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from rl_llm.config.fields import Checked, NonNegativeInt, PositiveFloat, PositiveInt, UnitFloat
from rl_llm.learner.optimizer import AdamW
from rl_llm.problem import Problem, problem_id
from rl_llm.rewards.worker import LARGEST_REWARD
from rl_llm.tasks.messages import judged_pair, prompt_of, refuse_shown
from rl_llm.tasks.tables import Fields, read_files, rows_of


@dataclass(frozen=True)
class SkillGate(Checked):
    """Accuracy that the policy must reach before RL starts, because RL only selects behaviour that already occurs.

    Measured on sampled responses to validation problems that must begin with `prefix`, such as an opening think tag.
    """

    prefix: str
    minimum: UnitFloat


@dataclass(frozen=True)
class Conversations(Checked):
    """Chats or prompt/response pairs of a data file. Needs the extra `data`.

    A row is {"prompt": "...", "response": "..."} (or "completion"), {"messages": [{"role": "user", "content": "..."},
    ...]}, ShareGPT's {"conversations": [{"from": "human", "value": "..."}, ...]}, or Alpaca's {"instruction": "...",
    "input": "...", "output": "..."}. Messages are rendered by the tokenizer's chat template. The loss covers the
    assistant's text and the token that ends it; every token of a step weighs the same.

    An update learns `rows_per_step` packed rows of `row_tokens` tokens. Whole conversations, in an order given by seed
    and epoch, go to the first row with room; none attends to another. Metric "packing/filled": share of used slots.

    `micro_batches` splits the rows of an update to fit memory and changes nothing else. `data_dir` keeps the prepared
    copy, by default the folder `.tfds` beside the file.
    """

    path: str | Path
    rows_per_step: PositiveInt
    row_tokens: Annotated[int, Meta(ge=2)]
    micro_batches: PositiveInt = 1
    data_dir: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows_per_step % self.micro_batches:
            raise ValueError(
                f"Conversations.rows_per_step={self.rows_per_step} must be a multiple of micro_batches="
                f"{self.micro_batches}"
            )


@dataclass(frozen=True)
class WarmStart(Checked):
    """Supervised learning before RL, for `steps` updates.

    The data is `demonstrations` from a file, or else the task's own (`task.demonstrate(problem, generator)`) for
    `demonstrations_per_step` problems an update, with responses padded to `max_tokens`.
    """

    steps: PositiveInt
    optimizer: AdamW
    demonstrations_per_step: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    gate: SkillGate | None = None
    demonstrations: Conversations | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.optimizer.check(self.steps)
        for name in ("demonstrations_per_step", "max_tokens"):
            value = getattr(self, name)
            if value is None and self.demonstrations is None:
                raise ValueError(f"WarmStart.{name} is missing: the task's own demonstrations need it")
            if value is not None and self.demonstrations is not None:
                raise ValueError(
                    f"WarmStart.{name}={value} cannot act beside demonstrations of a file; set "
                    "demonstrations.rows_per_step and row_tokens instead"
                )


@dataclass(frozen=True)
class Mixture(Checked):
    """Learn from `per_update` of the task's demonstrations at every RL update.

    The loss gains `coefficient` times the mean of -log pi over their tokens, as the SFT term of LUFFY-like and
    CHORD-like mixtures (arXiv 2508.11408). Responses are padded to `max_tokens`.
    """

    per_update: PositiveInt
    max_tokens: PositiveInt
    coefficient: PositiveFloat = 0.1


@dataclass(frozen=True)
class Teacher(Checked):
    """Policy of another run with the same tokenizer, to distil from. Its model may be larger.

    Its log-probability of each token becomes batch.ref_logp (for ReverseKL), its `top_tokens` likeliest tokens at each
    position batch.teacher_tokens and teacher_logp (for Distillation). The responses of a step are the policy's own with
    probability `on_policy`, else the teacher's (lambda of GKD, arXiv 2306.13649, algorithm 1).
    """

    run: str
    top_tokens: NonNegativeInt = 0
    on_policy: UnitFloat = 1.0


@dataclass(frozen=True)
class RewardModel:
    """Critic of another run, learned from preferences (BradleyTerry), that scores responses.

    The score is its value at the last token. `weight` times the score is the reward of RL (arXiv 2203.02155), or with
    `added` one more component of it. Metric "component/reward_model". Accuracy is measured in both cases.
    """

    run: str
    weight: float = 1.0
    added: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight) or self.weight == 0:
            raise ValueError(f"RewardModel.weight={self.weight} is out of range; expected a finite number except 0")


@dataclass(frozen=True)
class StoredResponses(Checked):
    """Responses that were sampled and judged earlier; learning from them instead of the policy's own is offline RL.

    A row of the data file is {"prompt": "...", "responses": ["...", ...], "rewards": [1.0, ...]} with
    `responses_per_prompt` responses; the reward null stands for a response that could not be graded. A preference is a
    row of two, with rewards 1 and 0, or {"prompt": ..., "chosen": ..., "rejected": ...} in the layouts of TRL, as texts
    or messages. `rl-llm evaluate RUN --responses FILE` writes such a file. With `--logits k` its lines also have
    "tokens", the sampled ids, and "teacher_tokens" and "teacher_logp" (k per token), for distillation without the
    teacher; `top_tokens` of them are read.

    A row with the gold "answer" instead of "rewards" is graded when the run starts, by the task's verifier and the
    experiment's reward.
    """

    path: str
    top_tokens: NonNegativeInt = 0

    def problems(self, responses_per_prompt: int) -> list[Problem]:
        """Read the lines as problems, with the responses and their fields in `metadata`.

        Raises ValueError naming the file and the invalid row, and FileNotFoundError if there is no file.
        """
        missing = f"responses.path={self.path!r} is not a file; set it to one of stored responses"
        rows = enumerate(rows_of(read_files(self.path, missing)), 1)
        return [self._problem(place, fields, number, responses_per_prompt) for number, (place, fields) in rows]

    def _problem(self, place: str, fields: Fields | ValueError, number: int, K: int) -> Problem:
        try:
            if isinstance(fields, ValueError):
                raise fields
            refuse_shown(fields)
            item = judged_pair(fields) if "chosen" in fields else fields
            prompt, messages = prompt_of(item["prompt"])
            responses = item["responses"]
            rewards = item["rewards"] if "answer" not in item else item.get("rewards", [None] * K)
        except (ValueError, KeyError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(
                f'{place}: {reason}; a row is {{"prompt": ..., "responses": [...], "rewards": [...]}}, or has a gold '
                '"answer" instead of rewards, or is {"prompt": ..., "chosen": ..., "rejected": ...}'
            ) from error
        if not _all(responses, str) or not _all(rewards, int, float, Decimal, type(None)):
            raise ValueError(f"{place}: responses must be a list of texts, rewards a list of numbers")
        rewards = [float(reward) if isinstance(reward, Decimal) else reward for reward in rewards]
        if not all(abs(reward) <= LARGEST_REWARD for reward in rewards if reward is not None):
            raise ValueError(f"{place}: rewards must be finite, at most {LARGEST_REWARD:g} in size: {rewards}")
        if not len(responses) == len(rewards) == K:
            raise ValueError(
                f"{place} has {len(responses)} responses and {len(rewards)} rewards; expected "
                f"responses_per_prompt={K} of each"
            )
        answer = item["answer"] if "rewards" not in item else ""
        if not isinstance(answer, str) or not (answer.strip() or "rewards" in item):
            raise ValueError(f'{place}: "answer" is {answer!r}; expected the gold answer as a text')
        teaching = ("teacher_tokens", "teacher_logp") if self.top_tokens else ()
        for name in (*teaching, *(["tokens"] if "tokens" in item else [])):
            if not isinstance(item.get(name), list) or len(item[name]) != K:
                raise ValueError(f"{place}: {name} must have an entry for each of the {K} responses")
        names = ("responses", "rewards", "tokens", "tokenizer", "temperature", *teaching)
        kept = {name: item[name] for name in names if name in item} | {"place": place}
        kept |= {"rewards": rewards} if "rewards" in item else {}
        kept |= {"messages": messages} if messages else {}
        return Problem(problem_id(str(number), prompt), prompt, answer, metadata=kept)


def _all(values: Any, *kinds: type) -> bool:
    return isinstance(values, list) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
