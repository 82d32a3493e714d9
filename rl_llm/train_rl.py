"""A whole RL run, readable top to bottom. START HERE.

    demonstrations -> warm start -> gate -> evaluate -> [ prompts -> rollout -> reward -> batch -> updates ] x steps
    -> evaluate

Everything that decides what happens is in the `Experiment` and the seed. Every draw is a function of (seed, purpose,
step), so a run that was killed and resumed from its newest checkpoint is the run that was never killed, bit for bit.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rl_llm.actor import Actor, Answers
from rl_llm.evaluation import Outcome, evaluate
from rl_llm.experiment import Experiment
from rl_llm.fields import fields_for
from rl_llm.learner import compile_make_batch, compile_train_step
from rl_llm.mesh import put_on_batch
from rl_llm.noise import Purpose, generator, key
from rl_llm.observe import describe_rollout, training_samples
from rl_llm.problem import Problem, Split
from rl_llm.rewards.grader import Grader
from rl_llm.run import Run, carried, open_run
from rl_llm.runs.folder import RunFolder
from rl_llm.runs.report import write_report
from rl_llm.sampler import compile_sampler
from rl_llm.state import init_state
from rl_llm.train_sft import warm_start
from rl_llm.types import Metrics, TrainState, merge_metrics

SAMPLES_KEPT = 8  # held-out responses before and after RL that samples.jsonl and the report show


class GateError(Exception):
    """The policy lacks the skill that RL would have to select. The message says what to change."""


def train(
    experiment: Experiment,
    seed: int,
    mesh: Mesh,
    problems: Mapping[Split, Sequence[Problem]],
    folder: RunFolder,
    started: float,
) -> dict[str, Any]:
    """Run an experiment in an open folder, from where it stands, and return its summary.

    `mesh` and `problems` come from `prepare`; `started` is the monotonic time the program began at. Raises
    GateError when the warm start did not teach the base skill, Preempted after a SIGTERM (the state is saved:
    resume).
    """
    grading, K, T = experiment.grading, experiment.responses_per_prompt, experiment.sampling.max_tokens
    optimizer = experiment.optimizer.build(experiment.steps * experiment.updates_per_rollout)
    with (
        open_run(experiment, seed, folder, started, mesh) as (run, state),
        Grader(experiment.task.verify, experiment.reward, grading.workers, grading.time_limit) as grader,
    ):
        actor = Actor(experiment, mesh, compile_sampler(experiment.model, mesh, K, T), grader)

        state = warm_start(run, state, problems["train"], mesh)
        if "before" not in run.progress:
            check_skill(run, actor, state.params, problems["validation"])
            run.progress["before"] = examine(run, actor, state.params, problems["held_out"], "before")
            run.save(state)

        state = reinforce(run, actor, optimizer, state, problems["train"], problems["validation"])
        if "after" not in run.progress:
            run.progress["after"] = examine(run, actor, state.params, problems["held_out"], "after")
            run.save(state)
        summary = run.finish(state, problems["train"])
    return summary | {"report": str(write_report(folder.path))}


def reinforce(
    run: Run,
    actor: Actor,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    train_problems: Sequence[Problem],
    validation: Sequence[Problem],
) -> TrainState:
    """The RL steps that are still to be done: prompts -> rollout -> reward -> batch -> updates, and what to say about
    each.
    """
    experiment, seed = run.experiment, run.seed
    config, K, updates = experiment.model, experiment.responses_per_prompt, experiment.updates_per_rollout
    learn = compile_learning(actor, optimizer)
    rate = experiment.optimizer.rate(experiment.steps * updates)
    first = run.step - experiment.warm_steps
    if first == 0:  # RL takes the parameters of the warm start, not its optimizer's moments and schedule
        state = init_state(config, optimizer, actor.mesh, state.params, carried(experiment))
        run.progress["reinforcing"] = True

    with run.display.phase("reinforcement learning", experiment.steps, first) as phase:
        for step in range(first, experiment.steps):
            begun = time.perf_counter()
            problems = prompts_of_step(train_problems, seed, step, experiment.prompts_per_step)
            noise_key = key(seed, Purpose.ROLLOUT, step)
            sampler_params = state.past[0] if state.past else state.params
            answers = actor.answer(sampler_params, problems, noise_key, experiment.sampling)
            run.report_failures(answers.grades)

            update_begun = time.perf_counter()
            state, metrics = jax.block_until_ready(learn(state, problems, answers, noise_key, step))
            updated = time.perf_counter()

            values = describe_rollout(answers, config, K) | {
                "update/learning_rate": float(rate((step + 1) * updates - 1))
            }
            every = experiment.evaluation.every
            if every and (step + 1) % every == 0:
                noise_key = key(seed, Purpose.EVALUATION, step)
                outcome = assess(run, actor, state.params, validation, noise_key, experiment.sampling)
                values["evaluation/accuracy"] = outcome.accuracy
                run.folder.samples(training_samples(run.step + 1, problems, answers, K))
            seconds = {
                "time/generate": answers.generate_seconds,
                "time/grade": answers.grade_seconds,
                "time/update": updated - update_begun,
                "time/step": time.perf_counter() - begun,
            }
            line = run.record("rl", values, metrics, seconds)
            if step + 1 < experiment.steps:  # the last state is saved once it has been evaluated
                run.checkpoint_if_due(state)
            phase.update(
                step + 1,
                tokens=line["tokens/generated"],
                reward=line["reward/mean"],
                length=line["response/length"],
                entropy=line["policy/entropy"],
            )
    return state


Learn = Callable[[TrainState, Sequence[Problem], Answers, jax.Array, int], tuple[TrainState, Metrics]]


def compile_learning(actor: Actor, optimizer: optax.GradientTransformation) -> Learn:
    """What is learned from the answers of a step: answers -> batch -> updates, and what the state carries on."""
    experiment, mesh, updates = actor.experiment, actor.mesh, actor.experiment.updates_per_rollout
    fields = fields_for(actor)
    build_batch = compile_make_batch(experiment.algorithm, mesh)
    update_policy = compile_train_step(
        experiment.model,
        experiment.algorithm,
        optimizer,
        mesh,
        updates_per_rollout=updates,
        micro_batches=experiment.micro_batches,
        carried=carried(experiment),
    )
    temperature = jnp.float32(experiment.sampling.temperature)

    def learn(
        state: TrainState, problems: Sequence[Problem], answers: Answers, noise_key: jax.Array, step: int
    ) -> tuple[TrainState, Metrics]:
        made = fields.make(state, problems, answers, noise_key)
        batch, moments = build_batch(answers.rollout, put_on_batch(mesh, answers.rewards), made, state.moments)
        state = replace(state, past=pushed(state.past, state.params), moments=moments)
        metrics = []
        for update in range(updates):
            state, update_metrics = update_policy(state, batch, jnp.int32(update), temperature)
            metrics.append(update_metrics)
        if experiment.reference is not None:
            reference = experiment.reference.after_step(state.reference, state.params, step + 1)
            state = replace(state, reference=reference)
        return state, of_all_updates(metrics)

    return learn


def pushed(past: tuple[dict, ...] | None, params: dict) -> tuple[dict, ...] | None:
    """The parameters of past steps with these, which the update is about to overwrite, and without the oldest."""
    return past and (*past[1:], jax.tree.map(jnp.copy, params))


def prompts_of_step(problems: Sequence[Problem], seed: int, step: int, count: int) -> list[Problem]:
    """The problems of a step: every epoch in an order of its own, without repetition, the remainder of an epoch left
    out.
    """
    epoch, place = divmod(step, len(problems) // count)
    order = generator(seed, Purpose.PROMPT_ORDER, epoch).permutation(len(problems))
    return [problems[index] for index in order[place * count : (place + 1) * count]]


def of_all_updates(metrics: Sequence[Metrics]) -> Metrics:
    """Metrics of a step's updates together; agreement is the first update's: after it the learner is another policy."""
    together = reduce(merge_metrics, metrics)
    return together | {name: metric for name, metric in metrics[0].items() if name.startswith("agreement/")}


def assess(run: Run, actor: Actor, *arguments: Any) -> Outcome:
    """`evaluate`, its tokens counted as a cost of the run."""
    outcome = evaluate(actor, *arguments)
    run.progress["tokens_evaluated"] += outcome.tokens
    return outcome


def check_skill(run: Run, actor: Actor, params: dict, problems: Sequence[Problem]) -> None:
    """RL can only select what the policy sometimes does: refuse to start where it cannot do the task even when led to
    it.
    """
    gate = run.experiment.warm_start.gate if run.experiment.warm_start else None
    if gate is None:
        return
    noise_key = key(run.seed, Purpose.SKILL)
    skill = assess(run, actor, params, problems, noise_key, run.experiment.sampling, gate.prefix).accuracy
    run.progress["skill"] = skill
    run.folder.ledger.append("gate", skill=skill, minimum=gate.minimum)
    verdict = f"made to begin with {gate.prefix!r}, the policy solves {skill:.1%} of validation problems"
    run.display.say(verdict)
    if skill < gate.minimum:
        raise GateError(
            f"{verdict}, less than the {gate.minimum:.0%} of warm_start.gate.minimum: it has not learned the step that "
            "reinforcement learning would have to select. Train it longer (--set warm_start.steps=...), on better "
            "demonstrations, or with another seed."
        )


def examine(run: Run, actor: Actor, params: dict, problems: Sequence[Problem], when: str) -> dict[str, Any]:
    """Held-out accuracy, sampled and greedy, with samples for the report. The same noise before and after: a paired
    comparison.
    """
    noise_key, sampling = key(run.seed, Purpose.EVALUATION), run.experiment.sampling
    outcome = assess(run, actor, params, problems, noise_key, sampling)
    greedy = assess(run, actor, params, problems, noise_key, sampling.at(0.0))
    run.folder.samples({"step": run.step, "when": when} | sample for sample in outcome.samples[:SAMPLES_KEPT])
    result = {
        "accuracy": outcome.accuracy,
        "greedy": greedy.accuracy,
        "pass_at_k": {str(k): value for k, value in outcome.pass_at_k.items()},
        "response_length": outcome.response_length,
        "truncated": outcome.truncated,
    }
    run.folder.ledger.append("evaluated", when=when, step=run.step, **result)
    run.display.say(
        f"{when} RL: {outcome.accuracy:.1%} of sampled and {greedy.accuracy:.1%} of greedy responses to held-out "
        f"problems are right, {outcome.response_length:.1f} tokens on average\n"
        + "\n".join(f"    {s['prompt']}  {s['response']}  [{s['reward']:g}]" for s in outcome.samples[:3])
    )
    return result
