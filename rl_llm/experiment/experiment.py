"""The experiment: one value that decides everything about a run except its seed and its folder.

`dataclasses.replace` derives one experiment from another in Python; `--set optimizer.learning_rate=2e-4` changes plain
values from the command line. An experiment with a field that cannot act is refused when it is made.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from msgspec import Meta

from rl_llm.algorithms import Algorithm, Reference, RunShape
from rl_llm.config.fields import Checked, NonNegativeInt, PositiveInt, UnitFloat
from rl_llm.experiment.checks import check_experiment, token_sources
from rl_llm.experiment.curriculum import Curriculum, DynamicSampling, Replay
from rl_llm.experiment.sources import Mixture, RewardModel, StoredResponses, Teacher, WarmStart
from rl_llm.experiment.suite import Suite
from rl_llm.learner.critic import Critic
from rl_llm.learner.optimizer import AdamW, Optimizer
from rl_llm.model import Initialization, ModelConfig
from rl_llm.model.weights import DEFAULT_INITIALIZATION
from rl_llm.parallel.mesh import MeshShape
from rl_llm.problem import Task
from rl_llm.rewards.components import Reward
from rl_llm.sampler import Sampling


class Tokenizer(Protocol):
    """Text to ids and back.

    A response ends with any of `stop_ids`, a demonstration with `end_id`, one of them. `encode` takes plain text,
    `encode_prompt` formats a problem first. Padding is id 0 whatever it means: masks and lengths tell what counts.
    """

    @property
    def end_id(self) -> int: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    def check_vocabulary(self, size: int) -> None:
        """Raise ValueError unless the tokenizer fits a model with `size` ids."""

    def encode(self, text: str) -> list[int]: ...
    def encode_prompt(self, text: str) -> list[int]: ...
    def decode(self, ids: Any) -> str: ...
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Evaluation(Checked):
    """Held-out accuracy before and after RL, from `responses_per_prompt` samples and one greedy response to each of
    `problems` problems. `every` > 0 adds validation accuracy on one batch of prompts, every that many steps.

    `suites` are evaluated at the same times (metric "evaluation/<suite>/accuracy"): train on one file, watch another.
    They change nothing of the training and are not in the fingerprint.
    """

    problems: PositiveInt = 256
    every: NonNegativeInt = 0
    suites: tuple[Suite, ...] = field(default=(), metadata={"fingerprint": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [suite.name for suite in self.suites]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            shown = ", ".join(map(repr, repeated))
            raise ValueError(f"Evaluation.suites has {shown} more than once; give each a name of its own")


@dataclass(frozen=True)
class Grading(Checked):
    """Number of grading processes, seconds allowed for one response, and how much may go wrong.

    A run is refused if more than the share `failing_problems` of its problems fail the gate (`commands.gate`): their
    own answers are not graded right, or wrong ones are. It stops if more than the share `ungraded` of a rollout or of
    an evaluation cannot be graded. Not in the fingerprint.
    """

    workers: PositiveInt = 2
    time_limit: Annotated[float, Meta(gt=0, le=3600)] = 5.0
    failing_problems: UnitFloat = 0.01
    ungraded: Annotated[float, Meta(ge=0, lt=1)] = 0.25


@dataclass(frozen=True)
class Checkpointing(Checked):
    """Save a checkpoint every `every` steps and keep the newest `keep`. Not in the fingerprint.

    With `keep_best`, a step with the best validation accuracy so far (`evaluation.every`) is saved as well, and kept
    until a better one is.
    """

    every: PositiveInt = 100
    keep: PositiveInt = 3
    keep_best: bool = False


@dataclass(frozen=True)
class Experiment(Checked):
    """One RL run. Raises ValueError for sizes that do not divide and for knobs that cannot act.

    `micro_batches` splits the rows of an update and `sampling_batches` the prompts of a rollout, to fit memory; neither
    changes anything else. `updates_per_rollout` optimizer updates learn from disjoint shares of a rollout's prompts.

    With `staleness` s the sampler has the parameters of s steps ago, so a rollout is sampled and graded while the one
    before it is learned from; with a `sampler_mesh`, on devices of its own (`mesh.make_meshes`). On several CPU devices
    only the grading overlaps. Refills of dynamic sampling, greedy baselines and reward models wait for the updates.

    A KL divergence is measured from the policy `reference`. `start` gives the first policy: a Hugging Face folder, a
    folder of PEFT adapters or a run folder; without it `initialization` draws one. With a `token_budget`, RL ends after
    the step that reaches it in generated tokens, or after `steps`: arms of a study compare at equal cost.
    """

    task: Task
    tokenizer: Tokenizer
    model: ModelConfig
    algorithm: Algorithm
    optimizer: AdamW
    sampling: Sampling
    steps: PositiveInt
    prompts_per_step: PositiveInt
    responses_per_prompt: PositiveInt
    token_budget: PositiveInt | None = None
    updates_per_rollout: PositiveInt = 1
    micro_batches: PositiveInt = 1
    sampling_batches: PositiveInt = 1
    staleness: NonNegativeInt = 0
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
    initialization: Initialization = DEFAULT_INITIALIZATION
    train_problems: int = 8192
    max_prompt_tokens: PositiveInt = 16
    warm_start: WarmStart | None = None
    reward: Reward = field(default_factory=Reward)
    evaluation: Evaluation = field(default_factory=Evaluation)
    grading: Grading = field(default_factory=Grading, metadata={"fingerprint": False})
    checkpointing: Checkpointing = field(default_factory=Checkpointing, metadata={"fingerprint": False})
    mesh: MeshShape = field(default_factory=MeshShape, metadata={"fingerprint": False})
    sampler_mesh: MeshShape | None = field(default=None, metadata={"fingerprint": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_experiment(self)
        self.algorithm.check(self._run_shape())

    @property
    def warm_steps(self) -> int:
        """Number of warm-start steps; RL steps are numbered on from there."""
        return self.warm_start.steps if self.warm_start else 0

    @property
    def pretraining_steps(self) -> int:
        """Number of initial RL steps in which the critic learns alone."""
        return self.critic.pretraining_steps if self.critic else 0

    def policy_updates(self, steps: int | None = None) -> int:
        """Updates of the policy in the first `steps` steps of RL; in all of them by default."""
        steps = self.steps if steps is None else steps
        return self.rollout_updates(steps) - self.rollout_updates(min(steps, self.pretraining_steps))

    def rollout_updates(self, steps: int) -> int:
        """Updates on rollouts, replayed ones included, in the first `steps` steps of RL. A critic makes all of them."""
        if self.replay is None:
            return steps * self.updates_per_rollout
        return self.replay.updates(steps, self.updates_per_rollout)

    @property
    def policy_optimizer(self) -> Optimizer:
        """Optimizer of the policy in RL."""
        return self.optimizer.build(self.policy_updates())

    @property
    def critic_optimizer(self) -> Optimizer | None:
        """Optimizer of the critic, if there is one."""
        return self.critic.optimizer.build(self.rollout_updates(self.steps)) if self.critic else None

    @property
    def warm_optimizer(self) -> Optimizer:
        """Optimizer of the warm start; without one, that of the state before RL."""
        return (self.warm_start.optimizer if self.warm_start else self.optimizer).build(self.warm_steps)

    def _run_shape(self) -> RunShape:
        truncated = (self.sampling.top_k, self.sampling.top_p, self.sampling.min_p) != (0, 1.0, 0.0)
        behind = self.staleness > 0 or self.replay is not None
        elsewhere = self.teacher is not None and self.teacher.on_policy < 1
        made = {"moments"} | ({"greedy_reward", "rewards"} if self.responses is None else set())
        made |= {"ref_logp", "kl_baseline"} if self.reference else set()
        made |= {"ref_logp"} if self.teacher else set()
        made |= {"value", "returns"} if self.critic else set()
        made |= {"teacher_tokens", "teacher_logp", "old_top_logp"} if token_sources(self) else set()
        return RunShape(
            self.prompts_per_step,
            self.responses_per_prompt,
            self.updates_per_rollout,
            self.micro_batches,
            sampler_differs=(behind or truncated or elsewhere) and self.responses is None,
            extra_fields=frozenset(made),
            max_tokens=self.sampling.max_tokens,
            components=len(self.reward.names),
        )
