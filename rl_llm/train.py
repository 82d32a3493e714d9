"""A whole RL run, readable top to bottom. START HERE.

    demonstrations -> warm start -> gate -> evaluate -> [ prompts -> rollout -> reward -> batch -> updates ] x steps
    -> evaluate

Everything that decides what happens is in the `Experiment` and the seed. Every draw is a function of (seed, purpose,
step), so a run that was killed and resumed from its newest checkpoint is the run that was never killed, bit for bit.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from rl_llm.experiment import Experiment
from rl_llm.learner.state import init_state, policy_of
from rl_llm.parallel import hosts
from rl_llm.parallel.mesh import Meshes
from rl_llm.prng import Purpose, key
from rl_llm.problem import Problem
from rl_llm.rollout.collect import Collector
from rl_llm.rollout.engine import RolloutEngine, compile_policy_sampler, open_engine
from rl_llm.rollout.evaluate import Outcome, evaluate
from rl_llm.rollout.metrics import describe_rollout, in_brief, training_samples
from rl_llm.rollout.reward_model import scorer
from rl_llm.runs.folder import RunFolder
from rl_llm.runs.load import SourceModels
from rl_llm.runs.report import write_report
from rl_llm.runs.run import Run, open_run
from rl_llm.runs.state import state_spec
from rl_llm.types import TrainState
from rl_llm.update.step import compile_learning, push_past_params, sampler_params
from rl_llm.update.warm_start import warm_start

SAMPLES_KEPT = 8  # held-out responses before and after RL that samples.jsonl and the report show


class GateError(Exception):
    """The policy lacks the skill that RL would have to select. The message says what to change."""


def train(
    experiment: Experiment,
    seed: int,
    meshes: Meshes,
    problems: Mapping[str, Sequence[Problem]],
    sources: SourceModels,
    folder: RunFolder,
    started: float,
) -> dict[str, Any]:
    """Run an experiment in an open folder, from where it stands, and return its summary.

    `meshes`, `problems` and `sources` come from `prepare`; `started` is the monotonic time the program began at. Raises
    GateError when the warm start did not teach the base skill, Preempted after a SIGTERM (the state is saved:
    resume).
    """
    with (
        open_run(experiment, seed, folder, started, meshes.learner) as (run, state),
        open_engine(experiment, meshes) as engine,
    ):
        state = warm_start(run, state, problems, meshes.learner, sources.start)
        if "before" not in run.progress:
            check_skill(run, engine, policy_of(state), problems["validation"])
            run.progress["before"] = examine(run, engine, policy_of(state), problems["held_out"], "before")
            run.save(state)

        state = reinforce(run, engine, sources, state, problems)
        if "after" not in run.progress:
            run.progress["after"] = examine(run, engine, policy_of(state), problems["held_out"], "after")
            run.save(state)
        summary = run.finish(state, problems["train"])
    return summary | {"report": str(hosts.on_writer(lambda: write_report(folder.path)))}


def reinforce(
    run: Run, engine: RolloutEngine, sources: SourceModels, state: TrainState, problems: Mapping[str, Sequence[Problem]]
) -> TrainState:
    """The RL steps that are still to be done: prompts -> rollout -> reward -> batch -> updates, and what to say about
    each.
    """
    experiment, updates = run.experiment, run.experiment.policy_updates
    config, K = experiment.model, experiment.responses_per_prompt
    optimizer, rate = experiment.optimizer.build(updates()), experiment.optimizer.rate(updates())
    collector = collector_of(run, engine, sources, problems)
    mesh = engine.meshes.learner
    learning = compile_learning(experiment, run.seed, mesh, sources, problems["train"])
    first = run.step - experiment.warm_steps
    if first == 0:  # RL takes the parameters of the warm start, not its optimizer's moments and schedule
        state = init_state(config, optimizer, mesh, policy_of(state), state_spec(experiment))
        run.progress["reinforcing"] = True

    begun = None
    with run.display.phase("reinforcement learning", experiment.steps, first) as phase:
        for step in range(first, experiment.steps):
            if run.spends_budget():
                break
            start = time.perf_counter()
            collected = collector.finish(begun or collector.begin(step, sampler_params(state)))
            begun = None  # nor its parameters, which a sampler on devices of its own need not have beside the next ones
            state = push_past_params(state)
            answers, rollout = collected.answers, collected.experience.rollout
            values = describe_rollout(answers, config, K, rollout, learning.passes(step)) | collected.values
            last = step + 1 == experiment.steps or run.spends_budget(values)
            ahead = experiment.staleness > 0 and not last
            begun = collector.begin(step + 1, sampler_params(state)) if ahead else None  # sampled during the update

            update_start = time.perf_counter()
            state, metrics = jax.block_until_ready(learning.step(state, collected.experience, step))
            updated = time.perf_counter()

            values["update/learning_rate"] = float(rate(max(updates(step + 1) - 1, 0)))
            every = experiment.evaluation.every
            if every and (step + 1) % every == 0:
                noise_key = key(run.seed, Purpose.EVALUATION, step)
                outcome = assess(run, engine, policy_of(state), problems["validation"], noise_key, experiment.sampling)
                values["evaluation/accuracy"] = outcome.accuracy
                run.folder.samples(training_samples(run.step + 1, collected.problems, answers, K))
            seconds = {
                "time/generate": answers.generate_seconds,
                "time/grade": answers.grade_seconds,
                "time/update": updated - update_start,
                "time/step": time.perf_counter() - start,
            }
            line = run.record("rl", values, metrics, seconds)
            if not last:  # the last state is saved once it has been evaluated
                run.checkpoint_if_due(state)
            phase.update(step + 1, tokens=line["tokens/generated"], **in_brief(line))
    return state


def collector_of(
    run: Run, engine: RolloutEngine, sources: SourceModels, problems: Mapping[str, Sequence[Problem]]
) -> Collector:
    """The source of a run's experience: its own policy, a teacher in its place, or stored responses."""
    teacher, score = None, None
    if sources.teacher is not None:
        model, params = sources.teacher[0].model, sources.teacher[1]
        sample, weights = compile_policy_sampler(model, engine.experiment, engine.meshes)
        answering = replace(engine, sample=sample, weights=weights, sent={})
        teacher = answering, answering.placed(params)
    if sources.reward_model is not None:
        score = scorer(sources.reward_model, engine.meshes.learner)
    return Collector(run, engine, problems.get("stored", problems["train"]), teacher, score)


def assess(run: Run, engine: RolloutEngine, *arguments: Any) -> Outcome:
    """`evaluate`, its tokens counted as a cost of the run."""
    outcome = evaluate(engine, *arguments)
    run.progress["tokens_evaluated"] += outcome.tokens
    return outcome


def check_skill(run: Run, engine: RolloutEngine, params: dict, problems: Sequence[Problem]) -> None:
    """RL can only select what the policy sometimes does: refuse to start where it cannot do the task even when led to
    it.
    """
    gate = run.experiment.warm_start.gate if run.experiment.warm_start else None
    if gate is None:
        return
    noise_key = key(run.seed, Purpose.SKILL)
    skill = assess(run, engine, params, problems, noise_key, run.experiment.sampling, gate.prefix).accuracy
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


def examine(run: Run, engine: RolloutEngine, params: dict, problems: Sequence[Problem], when: str) -> dict[str, Any]:
    """Held-out accuracy, sampled and greedy, with samples for the report. The same noise before and after: a paired
    comparison.
    """
    noise_key, sampling = key(run.seed, Purpose.EVALUATION), run.experiment.sampling
    outcome = assess(run, engine, params, problems, noise_key, sampling)
    greedy = assess(run, engine, params, problems, noise_key, sampling.at(0.0))
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
