"""An experiment is a value: everything that decides what a run does, but for its seed and its folder.

Structure is chosen in Python (`dataclasses.replace` derives one experiment from another); values can be overridden
from the command line (`--set optimizer.learning_rate=2e-4`). A combination in which a field could not act is refused
when the value is made.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from rl_llm.algorithms import Algorithm, Reference, Setting
from rl_llm.mesh import MeshShape
from rl_llm.model import ModelConfig
from rl_llm.optimizer import AdamW
from rl_llm.problem import Task
from rl_llm.rewards.components import Reward
from rl_llm.sampler import Sampling


class Tokenizer(Protocol):
    """Text to ids and back. Id `pad_id` must be 0: responses are padded with it on the device."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def end_id(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Any) -> str: ...
    def fingerprint(self) -> str: ...


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
class WarmStart:
    """Supervised learning on the task's demonstrations (`task.demonstrate(problem, generator)`): `steps` updates on
    `demonstrations_per_step` problems each, responses padded to `max_tokens`."""

    steps: int
    demonstrations_per_step: int
    max_tokens: int
    optimizer: AdamW
    gate: SkillGate | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "demonstrations_per_step", "max_tokens")
        self.optimizer.check(self.steps)


@dataclass(frozen=True)
class Evaluation:
    """Held-out accuracy before and after RL: `problems` x `responses_per_prompt` samples, and greedy. With `every` >
    0, validation accuracy on one batch of prompts every so many steps.
    """

    problems: int = 256
    every: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "problems")
        at_least(self, 0, "every")


@dataclass(frozen=True)
class Grading:
    """Worker processes, and seconds that one response may take. Not part of an experiment's fingerprint."""

    workers: int = 2
    time_limit: float = 5.0

    def __post_init__(self) -> None:
        at_least(self, 1, "workers")
        if not 0 < self.time_limit <= 3600:
            raise ValueError(f"Grading.time_limit must be more than 0 and at most 3600 seconds, not {self.time_limit}")


@dataclass(frozen=True)
class Checkpointing:
    """A checkpoint every `every` steps, the newest `keep` kept. Not part of an experiment's fingerprint."""

    every: int = 100
    keep: int = 3

    def __post_init__(self) -> None:
        at_least(self, 1, "every", "keep")


@dataclass(frozen=True)
class Experiment:
    """One RL run. `micro_batches` cuts an update's rows to fit memory and changes nothing else; `updates_per_rollout`
    are optimizer updates on disjoint shares of a rollout's prompts. With `staleness` s the sampler has the parameters
    of s steps before, as if it ran that much ahead of the learner; `reference` is what a KL divergence is measured
    from. Raises ValueError for sizes that do not divide and knobs that cannot act.
    """

    task: Task
    tokenizer: Tokenizer
    model: ModelConfig
    algorithm: Algorithm
    optimizer: AdamW
    sampling: Sampling
    steps: int
    prompts_per_step: int
    responses_per_prompt: int
    updates_per_rollout: int = 1
    micro_batches: int = 1
    staleness: int = 0
    reference: Reference | None = None
    train_problems: int = 8192
    max_prompt_tokens: int = 16
    warm_start: WarmStart | None = None
    reward: Reward = field(default_factory=Reward)
    evaluation: Evaluation = field(default_factory=Evaluation)
    grading: Grading = field(default_factory=Grading, metadata={"fingerprint": False})
    checkpointing: Checkpointing = field(default_factory=Checkpointing, metadata={"fingerprint": False})
    mesh: MeshShape = field(default_factory=MeshShape, metadata={"fingerprint": False})

    @property
    def warm_steps(self) -> int:
        """Steps of the warm start; RL steps are numbered on from there."""
        return self.warm_start.steps if self.warm_start else 0

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "prompts_per_step", "responses_per_prompt", "updates_per_rollout", "micro_batches")
        at_least(self, 1, "max_prompt_tokens")
        at_least(self, 0, "staleness")
        self.optimizer.check(self.steps * self.updates_per_rollout)
        if self.prompts_per_step % (self.updates_per_rollout * self.micro_batches):
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} must be a multiple of updates_per_rollout * micro_batches = "
                f"{self.updates_per_rollout} * {self.micro_batches}: updates and micro-batches take whole prompts"
            )
        if self.train_problems < self.prompts_per_step:
            raise ValueError(
                f"train_problems={self.train_problems} is less than prompts_per_step={self.prompts_per_step}: a step "
                "would hold a problem twice"
            )
        if self.model.vocabulary != self.tokenizer.vocab_size or self.tokenizer.pad_id != 0:
            raise ValueError(
                f"model.vocabulary={self.model.vocabulary} must be the tokenizer's {self.tokenizer.vocab_size}, "
                f"and its pad id must be 0, not {self.tokenizer.pad_id}"
            )
        if self.warm_start and not hasattr(self.task, "demonstrate"):
            raise ValueError(
                f"warm_start needs demonstrations, and the task {self.task.name} has none: set warm_start=None"
            )
        if self.evaluation.every > self.steps:
            raise ValueError(
                f"evaluation.every={self.evaluation.every} with steps={self.steps}: no step would be evaluated; set it "
                "to 0 (never) or to fewer steps"
            )
        if self.sampling.top_k >= self.model.vocabulary:
            raise ValueError(
                f"sampling.top_k={self.sampling.top_k} cannot act on a vocabulary of {self.model.vocabulary}: 0 is off"
            )
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature=0 draws the same response K times: nothing to select; use 1.0")
        if self.reference is not None and "ref_logp" not in self.algorithm.needs:
            raise ValueError(f"reference={self.reference} cannot act: no component of the algorithm looks at it")
        truncated = (self.sampling.top_k, self.sampling.top_p, self.sampling.min_p) != (0, 1.0, 0.0)
        made = {"moments", "greedy_reward", "rewards"} | ({"ref_logp"} if self.reference is not None else set())
        self.algorithm.check(
            Setting(
                self.prompts_per_step,
                self.responses_per_prompt,
                self.updates_per_rollout,
                self.micro_batches,
                sampler_differs=self.staleness > 0 or truncated,
                made=frozenset(made),
            )
        )
