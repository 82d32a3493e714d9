"""A whole RL run, readable top to bottom. START HERE.

    demonstrations -> warm start -> gate -> evaluate -> [ prompts -> rollout -> reward -> batch -> updates ] x steps
    -> evaluate

The `Experiment` and the seed decide everything that happens. Every draw is a function of (seed, purpose, step), so a
run that was killed and resumed from its newest checkpoint equals the run that was never killed, bit for bit.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import jax
from jax.profiler import TraceAnnotation, annotate_function

from rl_llm.experiment import Experiment
from rl_llm.learner.state import init_state, policy_of
from rl_llm.parallel.mesh import Meshes
from rl_llm.prng import Purpose, key
from rl_llm.problem import Problem
from rl_llm.rewards.grader import Grader, GradingError
from rl_llm.rollout.collect import Collector
from rl_llm.rollout.engine import GradedRollout, RolloutEngine, compile_policy_sampler, open_engine
from rl_llm.rollout.evaluate import Evaluated, engine_of, evaluate
from rl_llm.rollout.metrics import describe_rollout, in_brief, training_samples
from rl_llm.rollout.offline import grade_stored
from rl_llm.rollout.reward_model import compile_scorer
from rl_llm.runs.divergence import stop_if_diverged
from rl_llm.runs.folder import RunFolder
from rl_llm.runs.load import SourceModels
from rl_llm.runs.run import Run, open_run
from rl_llm.runs.state import state_spec
from rl_llm.runs.watcher import Watcher
from rl_llm.types import Metrics, TrainState
from rl_llm.update.step import compile_learning, push_past_params, sampler_params
from rl_llm.update.warm_start import warm_start

Problems = Mapping[str, Sequence[Problem]]  # by split, or by the key of a suite (`prepare`)
SAMPLES_OF_A_STEP = 2  # training responses that samples.jsonl shows at each evaluation
SAMPLES_KEPT = 8  # held-out responses before and after RL that samples.jsonl and the report show


class GateError(Exception):
    """The policy lacks the skill that RL would have to select. The message says what to change."""


def train(
    experiment: Experiment,
    seed: int,
    meshes: Meshes,
    problems: Problems,
    sources: SourceModels,
    folder: RunFolder,
    started: float,
    grader: Grader | None = None,
    watchers: Sequence[Watcher] = (),
) -> dict[str, Any]:
    """Run an experiment in an open folder, from its newest state on, and return its summary.

    `meshes`, `problems` and `sources` come from `prepare`; `started` is the monotonic time at which the program began;
    `grader` is running, or is started; `watchers` see the run. Raises GateError if the warm start did not teach the
    base skill; with the state saved, GradingError if too many responses cannot be graded, DivergedError if gradients
    are no longer finite, and Preempted after a SIGTERM or Ctrl-C. A run that has ended changes nothing.
    """
    with ExitStack() as stack:
        run, state = stack.enter_context(open_run(experiment, seed, folder, started, meshes.learner, watchers))
        if run.summary is not None:
            return run.summary
        engine = stack.enter_context(open_engine(experiment, meshes, grader))
        if "stored" in problems:
            problems = {**problems, "stored": grade_stored(engine.grader, problems["stored"])}
        state = warm_start(run, state, problems, meshes.learner, sources.start)
        if "before" not in run.progress:
            run.display.say("compiling the sampler, and evaluating the policy before RL ...")
            check_skill(run, engine, policy_of(state), problems["validation"])
            run.progress["before"] = examine(run, engine, policy_of(state), problems, "before")
            run.save(state)

        state = reinforce(run, engine, sources, state, problems)
        if "after" not in run.progress:
            run.progress["after"] = examine(run, engine, policy_of(state), problems, "after")
            run.save(state)
        return run.finish(state, problems["train"])


def reinforce(
    run: Run, engine: RolloutEngine, sources: SourceModels, state: TrainState, problems: Problems
) -> TrainState:
    """Make the remaining RL steps: prompts -> rollout -> reward -> batch -> updates."""
    experiment, mesh = run.experiment, engine.meshes.learner
    collector = open_collector(run, engine, sources, problems)
    learning = compile_learning(experiment, run.seed, mesh, sources, problems["train"])
    first = run.step - experiment.warm_steps
    if first == 0:  # RL takes the parameters of the warm start, not its optimizer's moments and schedule
        spec = state_spec(experiment)
        state = init_state(experiment.model, experiment.policy_optimizer, mesh, policy_of(state), spec)
        run.progress["reinforcing"] = True

    pending = None
    accuracy: dict[str, float] = {}  # of the last validation
    with run.display.phase("reinforcement learning", experiment.steps, first, compiles="the updates") as phase:
        for step in run.watched(range(first, experiment.steps)):
            if run.spends_budget():
                break
            start = time.perf_counter()
            try:
                graded = collector.wait(step, pending or collector.start(step, sampler_params(state)))
            except GradingError:
                run.save(state)  # with the verifier mended, the run resumes here
                raise
            pending = None  # frees its parameters, which a sampler with its own devices must not hold beside new ones
            state = push_past_params(state)
            values = describe_rollout(graded, experiment.model, learning.passes(step))
            last = step + 1 == experiment.steps or run.spends_budget(values)
            if experiment.staleness > 0 and not last:  # sampled during the updates
                pending = collector.start(step + 1, sampler_params(state))

            update_start = time.perf_counter()
            assert graded.learned is not None
            with TraceAnnotation("update"):
                state, metrics = jax.block_until_ready(learning.update(state, graded.learned, step))
            updated = time.perf_counter()

            found = evaluate_step(run, engine, policy_of(state), problems, graded, step)
            values, accuracy = values | found, found or accuracy
            seconds = {"time/update": updated - update_start, "time/step": time.perf_counter() - start}
            line = report_step(run, graded, values, metrics, seconds, step)
            everything = run.step, graded, range(len(graded.grades)), "diverged"
            stop_if_diverged(run, state, line, training_samples, *everything)
            if not last:  # the last state is saved once it has been evaluated
                run.checkpoint_if_due(state)
            phase.update(step + 1, tokens=line["tokens/generated"], **in_brief(accuracy | line))
    return state


def open_collector(run: Run, engine: RolloutEngine, sources: SourceModels, problems: Problems) -> Collector:
    """Open the collector of a run's rollouts: from its own policy, a teacher, or stored responses."""
    teacher, score = None, None
    if sources.teacher is not None:
        model, params = sources.teacher[0].model, sources.teacher[1]
        sample, weights = compile_policy_sampler(model, engine.experiment, engine.meshes)
        answering = replace(engine, sample=sample, weights=weights, sent={})
        teacher = answering, answering.place(params)
    if sources.reward_model is not None:
        score = compile_scorer(sources.reward_model, engine.meshes.learner)
    return Collector(run, engine, problems.get("stored", problems["train"]), teacher, score)


@annotate_function  # names it in a trace
def evaluate_step(
    run: Run, engine: RolloutEngine, params: dict, problems: Problems, graded: GradedRollout, step: int
) -> dict[str, float]:
    """Accuracy on validation and suites after a step, and training samples to look at, if they are due."""
    experiment = run.experiment
    if not experiment.evaluation.every or (step + 1) % experiment.evaluation.every:
        return {}
    noise_key = key(run.seed, Purpose.EVALUATION, step)
    found = assess(run, engine, "validation", params, problems["validation"], noise_key, experiment.sampling)
    suites = {f"evaluation/{name}/accuracy": value for name, value in watch(run, engine, params, problems).items()}
    K = experiment.responses_per_prompt
    run.folder.samples(training_samples(run.step + 1, graded, range(0, len(graded.grades), K)[:SAMPLES_OF_A_STEP]))
    return {"evaluation/accuracy": found.accuracy, **suites}


def watch(run: Run, engine: RolloutEngine, params: dict, problems: Problems) -> dict[str, float]:
    """Accuracy on the suites, with the same noise at every step, so that differences are paired."""
    experiment, noise_key, found = run.experiment, key(run.seed, Purpose.EVALUATION), dict[str, float]()
    for suite in experiment.evaluation.suites:
        asked, sampling = problems[suite.key], suite.sampling or experiment.sampling
        own = engine_of(engine, suite, asked)
        found[suite.name] = assess(run, own, suite.name, params, asked, noise_key, sampling).accuracy
    return found


def report_step(
    run: Run, graded: GradedRollout, values: dict[str, float], metrics: Metrics, seconds: dict[str, float], step: int
) -> dict[str, Any]:
    """Write the line of a step in metrics.jsonl, and return it."""
    updates = run.experiment.policy_updates
    rate = run.experiment.optimizer.rate(updates())
    values = {**values, "update/learning_rate": float(rate(max(updates(step + 1) - 1, 0)))}
    waited = {"time/generate": graded.generate_seconds, "time/grade": graded.grade_seconds}
    return run.record("rl", values, metrics, waited | seconds)


def assess(
    run: Run, engine: RolloutEngine, name: str, params: dict, problems: Sequence[Problem], *arguments: Any
) -> Evaluated:
    """Run `evaluate` with a bar, record what could not be graded, and count its tokens as a cost of the run."""
    with run.display.phase(f"evaluating {name}", len(problems), aside=True) as phase:
        done = 0

        def record(asked: Sequence[Problem], graded: GradedRollout) -> None:
            nonlocal done
            rows, done = len(asked) * len(graded.grades) // len(graded.problems), done + len(asked)
            run.record_ungraded(run.step, asked, graded.responses[:rows], graded.grades[:rows])
            phase.update(done)

        found = evaluate(engine, record, params, problems, *arguments)
    run.progress["tokens_evaluated"] += found.tokens
    return found


def check_skill(run: Run, engine: RolloutEngine, params: dict, problems: Sequence[Problem]) -> None:
    """Raise GateError if the policy cannot solve the task even when forced to start as the gate says.

    RL can only select what the policy does sometimes.
    """
    gate = run.experiment.warm_start.gate if run.experiment.warm_start else None
    if gate is None:
        return
    noise_key = key(run.seed, Purpose.SKILL)
    skill = assess(run, engine, "skill", params, problems, noise_key, run.experiment.sampling, gate.prefix).accuracy
    run.progress["skill"] = skill
    run.folder.ledger.append("gate", skill=skill, minimum=gate.minimum)
    verdict = f"forced to start with {gate.prefix!r}, the policy solves {skill:.1%} of validation problems"
    run.display.say(verdict)
    if skill < gate.minimum:
        raise GateError(
            f"{verdict}; warm_start.gate.minimum is {gate.minimum:.0%}. The policy has not learned the step that RL "
            "would have to select. Train it longer (--set warm_start.steps=...), on better demonstrations, or with "
            "another seed."
        )


def examine(run: Run, engine: RolloutEngine, params: dict, problems: Problems, when: str) -> dict[str, Any]:
    """Evaluate held-out accuracy, sampled and greedy, with samples for the report, and accuracy on the suites.

    The noise before and after RL is the same, so the comparison is paired.
    """
    noise_key, sampling, held_out = key(run.seed, Purpose.EVALUATION), run.experiment.sampling, problems["held_out"]
    found = assess(run, engine, f"{when} RL", params, held_out, noise_key, sampling)
    greedy = assess(run, engine, f"{when} RL, greedy", params, held_out, noise_key, sampling.at(0.0))
    suites = watch(run, engine, params, problems)
    run.folder.samples({"step": run.step, "when": when} | sample for sample in found.samples[:SAMPLES_KEPT])
    numbers = found.numbers()
    result = {"accuracy": numbers.pop("accuracy"), "greedy": greedy.accuracy, **numbers}
    result |= {"suites": suites} if suites else {}
    run.folder.ledger.append("evaluated", when=when, step=run.step, **result)
    run.display.say(
        f"{when} RL: {found.accuracy:.1%} of sampled and {greedy.accuracy:.1%} of greedy responses to held-out "
        f"problems are right, {found.response_length:.1f} tokens on average\n"
        + "\n".join(f"    {s['prompt']}  {s['response']}  [{s['reward']:g}]" for s in found.samples[:3])
        + "".join(
            f"\n{when} RL: {accuracy:.1%} of sampled responses to {name} are right" for name, accuracy in suites.items()
        )
    )
    return result
