"""Refuse experiments with fields that exclude each other or that cannot act. An algorithm checks its own components.

A field *cannot act* if no value of it changes the run.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl_llm.experiment.curriculum import Curriculum
from rl_llm.experiment.sources import StoredResponses, Teacher
from rl_llm.model.weights import DEFAULT_INITIALIZATION
from rl_llm.rewards.components import Reward

if TYPE_CHECKING:
    from rl_llm.algorithms import Reference
    from rl_llm.experiment.experiment import Experiment


def token_sources(experiment: "Experiment") -> "Sequence[Teacher | Reference | StoredResponses]":
    """Sources of batch.teacher_tokens, the likeliest tokens at each position."""
    sources = (experiment.teacher, experiment.reference, experiment.responses)
    return [source for source in sources if source is not None and source.top_tokens]


def check_experiment(experiment: "Experiment") -> None:
    """Raise ValueError naming the fields that do not go together, or the one that cannot act."""
    if experiment.start is not None and experiment.initialization != DEFAULT_INITIALIZATION:
        raise ValueError(f"{experiment.initialization} cannot act: start={experiment.start!r} has the first parameters")
    _check_budget(experiment)
    _check_updates(experiment)
    _check_sizes(experiment)
    _check_sampling(experiment)
    _check_curriculum(experiment)
    _check_tokenizers(experiment)
    _check_critic(experiment)
    _check_supervision(experiment)
    _check_reward(experiment)
    _check_stored(experiment)
    _check_over_time(experiment)


def _check_budget(experiment: "Experiment") -> None:
    budget, critic = experiment.token_budget, experiment.critic
    if budget is None:
        return
    if experiment.responses is not None:
        raise ValueError(f"token_budget={budget} cannot act: the responses are stored, none is generated")
    for name, optimizer in (("optimizer", experiment.optimizer), ("critic.optimizer", critic and critic.optimizer)):
        if optimizer and optimizer.schedule != "constant":
            raise ValueError(
                f"{name}.schedule={optimizer.schedule!r} falls until the last of steps={experiment.steps}, and "
                f"token_budget={budget} may end the run earlier; set the schedule to 'constant'"
            )


def _check_updates(experiment: "Experiment") -> None:
    steps, pretraining = experiment.steps, experiment.pretraining_steps
    if pretraining > steps:
        raise ValueError(f"critic.pretraining_steps={pretraining} are more than steps={steps}")
    if experiment.policy_updates():
        experiment.optimizer.check(experiment.policy_updates())
    if experiment.critic:
        experiment.critic.optimizer.check(experiment.rollout_updates(steps))


def _check_sizes(experiment: "Experiment") -> None:
    prompts, updates, parts = experiment.prompts_per_step, experiment.updates_per_rollout, experiment.micro_batches
    if prompts % (updates * parts):
        raise ValueError(
            f"prompts_per_step={prompts} must be a multiple of updates_per_rollout * micro_batches = {updates} * "
            f"{parts}: both split a rollout by whole prompts"
        )
    if prompts % experiment.sampling_batches:
        raise ValueError(
            f"prompts_per_step={prompts} must be a multiple of sampling_batches={experiment.sampling_batches}: one "
            "program samples all parts of a rollout"
        )
    problems, every, steps = experiment.train_problems, experiment.evaluation.every, experiment.steps
    if problems < prompts:
        raise ValueError(f"train_problems={problems} is less than prompts_per_step={prompts}: a step repeats a problem")
    if every > steps:
        raise ValueError(
            f"evaluation.every={every} with steps={steps} never evaluates; set fewer, or set it to 0 (off)"
        )
    if experiment.checkpointing.keep_best and not every:
        raise ValueError("checkpointing.keep_best=True cannot act: evaluation.every=0 measures no validation accuracy")


def _check_sampling(experiment: "Experiment") -> None:
    sampling, vocabulary, dynamic = experiment.sampling, experiment.model.vocabulary, experiment.dynamic_sampling
    problems, prompts = experiment.train_problems, experiment.prompts_per_step
    if sampling.top_k >= vocabulary:
        raise ValueError(f"sampling.top_k={sampling.top_k} cannot act on a vocabulary of {vocabulary}; 0 is off")
    if sampling.temperature == 0:
        raise ValueError("sampling.temperature=0 draws the same response K times: nothing to select; use 1.0")
    if dynamic and not experiment.algorithm.filters:
        raise ValueError(f"dynamic_sampling={dynamic} cannot act: no filter of the algorithm drops groups")
    if dynamic and problems < 2 * prompts:
        raise ValueError(
            f"dynamic_sampling={dynamic} cannot act: a second rollout asks prompts_per_step={prompts} further problems "
            f"of train_problems={problems}"
        )


def _check_curriculum(experiment: "Experiment") -> None:
    problems, prompts, longest = experiment.train_problems, experiment.prompts_per_step, experiment.sampling.max_tokens
    share, difficulty = experiment.curriculum.drop_solved, experiment.curriculum.difficulty
    length = experiment.curriculum.length
    if share is not None and problems == prompts:
        raise ValueError(f"curriculum.drop_solved={share} cannot act: every step asks all of train_problems={problems}")
    if difficulty and difficulty.count(problems, 0) < prompts:
        raise ValueError(
            f"curriculum.difficulty.first_share={difficulty.first_share} of train_problems={problems} is less than "
            f"prompts_per_step={prompts}"
        )
    if length and length.first >= longest:
        raise ValueError(f"curriculum.length.first={length.first} cannot act: sampling.max_tokens={longest}")
    for name, part in (("difficulty", difficulty), ("length", length)):
        if part and part.steps > experiment.steps:
            raise ValueError(f"curriculum.{name}.steps={part.steps} are more than steps={experiment.steps}")


def _check_tokenizers(experiment: "Experiment") -> None:
    for component in experiment.algorithm.components:
        tokenizer = getattr(component, "tokenizer", experiment.tokenizer)  # a field of components that read tokens
        if tokenizer != experiment.tokenizer:
            raise ValueError(
                f"{type(component).__name__}.tokenizer={tokenizer} differs from the experiment's "
                f"tokenizer={experiment.tokenizer}; set both to the same one"
            )


def _check_critic(experiment: "Experiment") -> None:
    critic, loss = experiment.critic, experiment.algorithm.value_loss
    if (critic is None) != (loss is None):
        raise ValueError(
            f"critic={critic} with algorithm.value_loss={loss}: a critic learns by a value loss; set both or neither"
        )
    if critic is not None and critic.shared and experiment.algorithm.after_token:
        raise ValueError("critic.shared=True with a reward model's loss; a reward model needs critic.shared=False")


def _check_supervision(experiment: "Experiment") -> None:
    needs, task = experiment.algorithm.needs, experiment.task
    reference, teacher, vocabulary = experiment.reference, experiment.teacher, experiment.model.vocabulary
    if reference is not None and not needs & {"ref_logp", "kl_baseline", "teacher_tokens"}:
        raise ValueError(f"reference={reference} cannot act: no component of the algorithm reads it")
    warm_start = experiment.warm_start
    by_task = {"warm_start": warm_start and warm_start.demonstrations is None, "mixture": experiment.mixture}
    for name, demonstrated in by_task.items():
        if demonstrated and not hasattr(task, "demonstrate"):
            raise ValueError(f"{name} needs demonstrations, and the task {task.name} has none; set {name}=None")
    if teacher is not None:
        if reference is not None:
            raise ValueError("teacher and reference both make batch.ref_logp; set one of them")
        if not needs & {"ref_logp", "teacher_tokens"}:
            raise ValueError(f"teacher={teacher} cannot act: no component of the algorithm reads it")
        if teacher.on_policy == 0 and experiment.staleness:
            raise ValueError(f"staleness={experiment.staleness} cannot act: teacher.on_policy=0 samples all responses")
    sources = token_sources(experiment)
    for source in sources:
        if source.top_tokens > vocabulary:
            raise ValueError(f"{source}: top_tokens is more than the vocabulary's {vocabulary} tokens")
    if len(sources) > 1 or (sources and "teacher_tokens" not in needs):
        raise ValueError(
            f"top_tokens of {' and '.join(type(source).__name__ for source in sources)}: exactly one source makes "
            "batch.teacher_tokens, for a component of the algorithm that reads it (Distillation)"
        )
    if experiment.mixture is not None and not experiment.policy_updates():
        raise ValueError("mixture cannot act: critic.pretraining_steps leaves no step to the policy")


def _check_reward(experiment: "Experiment") -> None:
    """Refuse a reward model and weights of components that nothing reads: GDPO's advantage has weights of its own."""
    algorithm, reward, model = experiment.algorithm, experiment.reward, experiment.reward_model
    by_component = "rewards" in algorithm.needs
    weighted = [component for component in reward.components if by_component and component.weight != 1.0]
    if weighted and not (algorithm.filters or any(loss.reads_reward for loss in algorithm.losses)):
        raise ValueError(
            f"{weighted[0]}.weight cannot act: {algorithm.advantage} has weights of its own and nothing reads the "
            "total reward; set it to 1.0"
        )
    if model and (by_component or not algorithm.reads_reward):
        raise ValueError(f"reward_model={model} cannot act: the algorithm does not read the total reward")
    if model and not model.added and reward != Reward():
        raise ValueError(
            f"reward={reward} cannot act: the reward model's score replaces it; set reward_model.added=True"
        )


def _check_stored(experiment: "Experiment") -> None:
    stored, teacher = experiment.responses, experiment.teacher
    if stored is None:
        return
    names = ("staleness", "replay", "dynamic_sampling", "reward_model")
    acting = [name for name in names if getattr(experiment, name)]
    acting += ["curriculum"] if experiment.curriculum != Curriculum() else []
    acting += ["teacher.on_policy"] if teacher and teacher.on_policy < 1 else []
    if acting:
        raise ValueError(f"{' and '.join(acting)} cannot act on stored responses ({stored.path}): nothing is sampled")


def _check_over_time(experiment: "Experiment") -> None:
    """Refuse values that would act only after the last step, or never."""
    steps, staleness = experiment.steps, experiment.staleness
    reference, replay = experiment.reference, experiment.replay
    if replay is not None and steps == 1:
        raise ValueError(f"replay={replay} cannot act: steps=1 has no earlier rollout")
    if reference is not None and reference.reset_every >= steps:
        raise ValueError(f"reference.reset_every={reference.reset_every} cannot act in steps={steps}; set fewer or 0")
    follows = reference is not None and (reference.reset_every == 1 or reference.decay == 0)
    if follows and experiment.updates_per_rollout == 1 and not staleness and not replay:
        raise ValueError(f"{reference} is the policy itself at every update (updates_per_rollout=1): divergence is 0")
    if staleness >= steps:
        raise ValueError(f"staleness={staleness} with steps={steps}: every rollout would be the first policy's")
