"""Which fields of an experiment go together: what could not act beside the others is refused, and so is what excludes
each other. An algorithm checks its own components.
"""

from typing import Any

from rl_llm.experiment.curriculum import Curriculum
from rl_llm.rewards.components import Reward


def teaching(experiment: Any) -> list[Any]:
    """What gives the likeliest tokens at each place to learn from: a teacher, a reference or a file."""
    sources = (experiment.teacher, experiment.reference, experiment.responses)
    return [source for source in sources if source is not None and source.top_tokens]


def check_budget(experiment: Any) -> None:
    """Raises ValueError where a budget of tokens ends a run before what goes by its steps would have."""
    if experiment.responses is not None:
        raise ValueError(
            f"token_budget={experiment.token_budget} cannot act: the responses are stored, none is generated"
        )
    critic = experiment.critic
    for name, optimizer in (("optimizer", experiment.optimizer), ("critic.optimizer", critic and critic.optimizer)):
        if optimizer and optimizer.schedule != "constant":
            raise ValueError(
                f"{name}.schedule={optimizer.schedule!r} falls until the last of steps={experiment.steps}, and "
                f"token_budget={experiment.token_budget} may end the run before: set the schedule to 'constant'"
            )


def check_tokenizers(experiment: Any) -> None:
    """Raises ValueError for a component of the algorithm that reads tokens by another tokenizer than the run's."""
    for component in experiment.algorithm.components:
        if getattr(component, "tokenizer", experiment.tokenizer) != experiment.tokenizer:
            raise ValueError(
                f"{type(component).__name__}.tokenizer={component.tokenizer} is not the experiment's, "
                f"tokenizer={experiment.tokenizer}: set both"
            )


def check_supervision(experiment: Any) -> None:
    """Raises ValueError for a critic, reference, teacher, stored responses or demonstrations that could not act, and
    for those that exclude each other.
    """
    needs, task = experiment.algorithm.needs, experiment.task
    critic, teacher, stored = experiment.critic, experiment.teacher, experiment.responses
    if (critic is None) != (experiment.algorithm.value_loss is None):
        raise ValueError(
            f"critic={critic} with algorithm.value_loss={experiment.algorithm.value_loss}: a critic learns by a value "
            "loss, and a value loss is a critic's; set both or none"
        )
    if experiment.reference is not None and not needs & {"ref_logp", "kl_baseline", "teacher_tokens"}:
        raise ValueError(f"reference={experiment.reference} cannot act: no component of the algorithm looks at it")
    for name, part in (("warm_start", experiment.warm_start), ("mixture", experiment.mixture)):
        if part and getattr(part, "demonstrations", None) is None and not hasattr(task, "demonstrate"):
            raise ValueError(f"{name} needs demonstrations, and the task {task.name} has none: set {name}=None")
    if teacher is not None:
        if experiment.reference is not None:
            raise ValueError("teacher and reference both make batch.ref_logp: set one of them")
        if not needs & {"ref_logp", "teacher_tokens"}:
            raise ValueError(f"teacher={teacher} cannot act: no component of the algorithm looks at it")
        if teacher.on_policy == 0 and experiment.staleness:
            raise ValueError(
                f"staleness={experiment.staleness} cannot act: the teacher answers at every step (on_policy=0)"
            )
    sources = teaching(experiment)
    for part in sources:
        if part.top_tokens > experiment.model.vocabulary:
            raise ValueError(f"{part}: the vocabulary has {experiment.model.vocabulary} tokens")
    if len(sources) > 1 or (sources and "teacher_tokens" not in needs):
        raise ValueError(
            f"top_tokens of {' and '.join(type(part).__name__ for part in sources)}: "
            "one of them makes batch.teacher_tokens, for a component of the algorithm that looks at it (Distillation)"
        )
    check_weights(experiment)
    check_reward_model(experiment)
    if experiment.mixture is not None and not experiment.policy_updates():
        raise ValueError("mixture cannot act: critic.pretraining_steps leaves no step to the policy")
    if critic is not None and critic.shared and getattr(experiment.algorithm.value_loss, "after_token", False):
        raise ValueError("a reward model is a network of its own: set critic.shared=False")
    if stored is not None:
        names = ("staleness", "replay", "dynamic_sampling", "reward_model")
        acting = [name for name in names if getattr(experiment, name)]
        acting += ["curriculum"] if experiment.curriculum != Curriculum() else []
        acting += ["teacher.on_policy"] if teacher and teacher.on_policy < 1 else []
        if acting:
            raise ValueError(
                f"{' and '.join(acting)} cannot act on stored responses ({stored.path}): nothing is sampled"
            )


def check_weights(experiment: Any) -> None:
    """Raises ValueError for weights of the reward's components where the advantage has its own (GDPO) and nothing else
    looks at the total.
    """
    algorithm = experiment.algorithm
    losses = (algorithm.objective, *algorithm.regularizers, algorithm.value_loss)
    if "rewards" not in algorithm.needs or algorithm.filters or any(getattr(x, "reads_reward", False) for x in losses):
        return
    for component in experiment.reward.components:
        if component.weight != 1.0:
            raise ValueError(
                f"{component}.weight cannot act: {algorithm.advantage} has weights of its own and nothing reads the "
                "total reward; set it to 1.0"
            )


def check_reward_model(experiment: Any) -> None:
    """Raises ValueError for a reward model, or a reward beside it, that nobody would read."""
    model = experiment.reward_model
    if model is None:
        return
    if "rewards" in experiment.algorithm.needs or not experiment.algorithm.reads_reward:
        raise ValueError(f"reward_model={model} cannot act: the algorithm does not read the total reward")
    if not model.added and experiment.reward != Reward():
        raise ValueError(
            f"reward={experiment.reward} cannot act: the reward model's score takes its place; set "
            "reward_model.added=True"
        )


def check_over_time(experiment: Any) -> None:
    """Raises ValueError for what would only act after the last step, or never."""
    reference, replay = experiment.reference, experiment.replay
    if replay is not None and experiment.steps == 1:
        raise ValueError(f"replay={replay} cannot act: steps=1 has no earlier rollout")
    if reference is not None and reference.reset_every >= experiment.steps:
        raise ValueError(
            f"reference.reset_every={reference.reset_every} cannot act in steps={experiment.steps}: set it to fewer, "
            "or to 0"
        )
    follows = reference is not None and (reference.reset_every == 1 or reference.decay == 0)
    if follows and experiment.updates_per_rollout == 1 and not experiment.staleness and not replay:
        raise ValueError(
            f"{reference} is the policy itself at every update (updates_per_rollout=1): no divergence would ever be "
            "more than 0"
        )
    if experiment.staleness >= experiment.steps:
        raise ValueError(
            f"staleness={experiment.staleness} with steps={experiment.steps}: every rollout would be the first policy's"
        )
