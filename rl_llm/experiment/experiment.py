"""An experiment is a value: everything that decides what a run does, but for its seed and its folder.

Structure is chosen in Python (`dataclasses.replace` derives one experiment from another); values can be overridden
from the command line (`--set optimizer.learning_rate=2e-4`). A combination in which a field could not act is refused
when the value is made.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from rl_llm.algorithms import Algorithm, Reference, RunShape
from rl_llm.config import check_fields
from rl_llm.experiment.checks import check_budget, check_over_time, check_supervision, check_tokenizers, teaching
from rl_llm.experiment.curriculum import Curriculum, DynamicSampling, Replay
from rl_llm.experiment.sources import Mixture, RewardModel, StoredResponses, Teacher, WarmStart, at_least
from rl_llm.learner.critic import Critic
from rl_llm.learner.optimizer import AdamW
from rl_llm.model import Initialization, ModelConfig
from rl_llm.model.weights import AS_DECLARED
from rl_llm.parallel.mesh import MeshShape
from rl_llm.problem import Task
from rl_llm.rewards.components import Reward
from rl_llm.sampler import Sampling


class Tokenizer(Protocol):
    """Text to ids and back. A response ends with any of `stop_ids`, a demonstration with `end_id`, which is one of
    them. `encode` is of a text alone, `encode_prompt` of a problem as the model is shown it. Rows are padded with id 0,
    whatever that stands for: masks and lengths say what counts.
    """

    @property
    def end_id(self) -> int: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    def check_vocabulary(self, size: int) -> None:
        """Raises ValueError unless it serves a model that knows `size` ids."""
        ...

    def encode(self, text: str) -> list[int]: ...
    def encode_prompt(self, text: str) -> list[int]: ...
    def decode(self, ids: Any) -> str: ...
    def fingerprint(self) -> str: ...


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
    """One RL run. `micro_batches` cuts an update's rows, and `sampling_batches` a rollout's prompts, to fit memory, and
    change nothing else; `updates_per_rollout` are optimizer updates on disjoint shares of a rollout's prompts.
    With `staleness` s the sampler has the parameters of s steps before, as if it ran that much ahead of the
    learner, and a rollout is sampled and graded while the one before it is learned from; with a `sampler_mesh` by
    devices of its own (`mesh.make_meshes`). (A sampler of several CPU devices samples first, and only the
    grading goes on beside; refills of dynamic sampling, greedy baselines and a reward model's scores are made when the
    updates are done.) `reference` is what a KL divergence is measured from.
    `start` is a Hugging Face folder, or the folder of a run, whose policy this one begins with; else
    `initialization` says how it is drawn. With a `token_budget` RL ends after the step that reaches it in
    generated tokens, or after `steps`: arms of a study compare at equal cost. Raises ValueError for sizes that do
    not divide and knobs that cannot act.
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
    token_budget: int | None = None
    updates_per_rollout: int = 1
    micro_batches: int = 1
    sampling_batches: int = 1
    staleness: int = 0
    replay: Replay | None = None
    dynamic_sampling: DynamicSampling | None = None
    curriculum: Curriculum = field(default_factory=Curriculum)
    critic: Critic | None = None
    reference: Reference | None = None
    teacher: Teacher | None = None
    reward_model: RewardModel | None = None
    mixture: Mixture | None = None
    responses: StoredResponses | None = None
    start: str | None = None
    initialization: Initialization = AS_DECLARED
    train_problems: int = 8192
    max_prompt_tokens: int = 16
    warm_start: WarmStart | None = None
    reward: Reward = field(default_factory=Reward)
    evaluation: Evaluation = field(default_factory=Evaluation)
    grading: Grading = field(default_factory=Grading, metadata={"fingerprint": False})
    checkpointing: Checkpointing = field(default_factory=Checkpointing, metadata={"fingerprint": False})
    mesh: MeshShape = field(default_factory=MeshShape, metadata={"fingerprint": False})
    sampler_mesh: MeshShape | None = field(default=None, metadata={"fingerprint": False})

    @property
    def warm_steps(self) -> int:
        """Steps of the warm start; RL steps are numbered on from there."""
        return self.warm_start.steps if self.warm_start else 0

    @property
    def pretraining_steps(self) -> int:
        """RL steps, the first ones, in which a critic learns alone."""
        return self.critic.pretraining_steps if self.critic else 0

    def policy_updates(self, steps: int | None = None) -> int:
        """Updates of the policy in the first `steps` steps of RL, or in all of them."""
        steps = self.steps if steps is None else steps
        return self.rollout_updates(steps) - self.rollout_updates(min(steps, self.pretraining_steps))

    def rollout_updates(self, steps: int) -> int:
        """Updates on rollouts, replayed ones too, in the first `steps` steps of RL: as many as a critic makes."""
        if self.replay is None:
            return steps * self.updates_per_rollout
        return self.replay.updates(steps, self.updates_per_rollout)

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(self, 1, "steps", "prompts_per_step", "responses_per_prompt", "updates_per_rollout", "micro_batches")
        at_least(self, 1, "max_prompt_tokens", "sampling_batches")
        at_least(self, 0, "staleness")
        if self.start is not None and self.initialization != AS_DECLARED:
            raise ValueError(f"{self.initialization} cannot act: start={self.start!r} has the first parameters")
        if self.token_budget is not None:
            at_least(self, 1, "token_budget")
            check_budget(self)
        if self.pretraining_steps > self.steps:
            raise ValueError(f"critic.pretraining_steps={self.pretraining_steps} are more than steps={self.steps}")
        if self.policy_updates():
            self.optimizer.check(self.policy_updates())
        if self.critic:
            self.critic.optimizer.check(self.rollout_updates(self.steps))
        self._check_sizes()
        self._check_sampling()
        check_tokenizers(self)
        check_supervision(self)
        check_over_time(self)
        self.algorithm.check(self._setting())

    def _check_sizes(self) -> None:
        if self.prompts_per_step % (self.updates_per_rollout * self.micro_batches):
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} must be a multiple of updates_per_rollout * micro_batches = "
                f"{self.updates_per_rollout} * {self.micro_batches}: updates and micro-batches take whole prompts"
            )
        if self.prompts_per_step % self.sampling_batches:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} must be a multiple of sampling_batches="
                f"{self.sampling_batches}: one program samples all parts of a rollout"
            )
        if self.train_problems < self.prompts_per_step:
            raise ValueError(
                f"train_problems={self.train_problems} is less than prompts_per_step={self.prompts_per_step}: a step "
                "would hold a problem twice"
            )
        if self.evaluation.every > self.steps:
            raise ValueError(
                f"evaluation.every={self.evaluation.every} with steps={self.steps}: no step would be evaluated; set it "
                "to 0 (never) or to fewer steps"
            )

    def _check_sampling(self) -> None:
        if self.sampling.top_k >= self.model.vocabulary:
            raise ValueError(
                f"sampling.top_k={self.sampling.top_k} cannot act on a vocabulary of {self.model.vocabulary}: 0 is off"
            )
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature=0 draws the same response K times: nothing to select; use 1.0")
        if self.dynamic_sampling and not self.algorithm.filters:
            raise ValueError(
                f"dynamic_sampling={self.dynamic_sampling} cannot act: no filter of the algorithm drops groups"
            )
        if self.dynamic_sampling and self.train_problems < 2 * self.prompts_per_step:
            raise ValueError(
                f"dynamic_sampling={self.dynamic_sampling} cannot act: a second rollout asks prompts_per_step="
                f"{self.prompts_per_step} further problems, and there are train_problems={self.train_problems} in all"
            )
        if self.curriculum.drop_solved is not None and self.train_problems == self.prompts_per_step:
            raise ValueError(
                f"curriculum.drop_solved={self.curriculum.drop_solved} cannot act: every step asks all of "
                f"train_problems={self.train_problems}"
            )
        difficulty, length = self.curriculum.difficulty, self.curriculum.length
        if difficulty and difficulty.count(self.train_problems, 0) < self.prompts_per_step:
            raise ValueError(
                f"curriculum.difficulty.first_share={difficulty.first_share} of train_problems={self.train_problems} "
                f"is less than prompts_per_step={self.prompts_per_step}"
            )
        if length and length.first >= self.sampling.max_tokens:
            raise ValueError(
                f"curriculum.length.first={length.first} cannot act: sampling.max_tokens={self.sampling.max_tokens}"
            )
        for name, part in (("difficulty", difficulty), ("length", length)):
            if part and part.steps > self.steps:
                raise ValueError(
                    f"curriculum.{name}.steps={part.steps} are more than steps={self.steps}: it would not end"
                )

    def _setting(self) -> RunShape:
        truncated = (self.sampling.top_k, self.sampling.top_p, self.sampling.min_p) != (0, 1.0, 0.0)
        behind = self.staleness > 0 or self.replay is not None
        elsewhere = self.teacher is not None and self.teacher.on_policy < 1
        made = {"moments"} | ({"greedy_reward", "rewards"} if self.responses is None else set())
        made |= {"ref_logp", "kl_baseline"} if self.reference else set()
        made |= {"ref_logp"} if self.teacher else set()
        made |= {"value", "returns"} if self.critic else set()
        made |= {"teacher_tokens", "teacher_logp", "old_top_logp"} if teaching(self) else set()
        return RunShape(
            self.prompts_per_step,
            self.responses_per_prompt,
            self.updates_per_rollout,
            self.micro_batches,
            sampler_differs=(behind or truncated or elsewhere) and self.responses is None,
            made=frozenset(made),
            max_tokens=self.sampling.max_tokens,
            components=len(self.reward.names),
        )
