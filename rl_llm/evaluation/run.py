"""An evaluation as people report it: ask suites, keep every sample, summarise each suite with intervals."""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import jax

from rl_llm.evaluation.samples import PARQUET, SAMPLES, Line, by_problem, lines_of, shown, write_lm_eval, write_parquet
from rl_llm.evaluation.statistics import average, majority_at, pass_at
from rl_llm.evaluation.stored import SamplesFile
from rl_llm.evaluation.subject import Subject
from rl_llm.experiment.suite import SUITE, Suite
from rl_llm.parallel import hosts
from rl_llm.parallel.mesh import Meshes
from rl_llm.prng import Purpose, key
from rl_llm.problem import Problem
from rl_llm.rollout.engine import GradedRollout, RolloutEngine, open_engine
from rl_llm.rollout.evaluate import Evaluated, engine_of, evaluate
from rl_llm.runs.checkpoint import state_sha256
from rl_llm.runs.files import json_line, write_atomically
from rl_llm.runs.progress import Progress
from rl_llm.runs.record import package_versions

RESULT = "evaluation.json"


@dataclass(frozen=True)
class EvaluationPlan:
    """Suites with their problems, the `ks` of pass@k and maj@k, the seed of the noise, and the files to write.

    `rows` responses are sampled at once (0: as the experiment does). `out` is a folder for the result and all samples.
    `responses` is a file of the first suite's responses for `StoredResponses`, with `logits` likeliest tokens each.
    """

    asked: Sequence[tuple[Suite, Sequence[Problem]]]
    ks: tuple[int, ...]
    seed: int
    rows: int = 0
    out: Path | None = None
    parquet: bool = False
    lm_eval: bool = False
    responses: Path | None = None
    logits: int = 0


def evaluate_suites(subject: Subject, meshes: Meshes, plan: EvaluationPlan) -> tuple[dict[str, Any], Evaluated]:
    """Evaluate a policy on suites; returns the result as JSON values, and the first suite's numbers as a run has them.

    With several processes all call it, and the first one writes. Raises CheckpointError, RecordError, GradingError,
    ValueError, or FileExistsError for samples that are there.
    """
    params, model = subject.load(meshes)
    own = tuple(suite for suite, problems in plan.asked if SUITE in problems[0].metadata)
    experiment = replace(subject.experiment, evaluation=replace(subject.experiment.evaluation, suites=own))
    results: dict[str, Any] = {}
    lines: list[Line] = []
    first: Evaluated | None = None
    with ExitStack() as stack:
        if plan.out is not None:
            hosts.on_writer(lambda: plan.out.mkdir(parents=True, exist_ok=True))  # type: ignore[union-attr]
        writes = plan.out is not None and hosts.writes()
        file = stack.enter_context(_new_file(plan.out / SAMPLES)) if writes and plan.out else None
        display = stack.enter_context(Progress(quiet=not hosts.writes()))
        engine = stack.enter_context(open_engine(experiment, meshes))
        for suite, problems in plan.asked:
            opened = engine_of(engine, suite, problems, plan.rows)
            found, new = _ask(opened, params, suite, problems, plan, display, file)
            first = first or found
            results[suite.name] = _summary(experiment.tokenizer, suite, problems, new, plan)
            lines += new
        weights = state_sha256(params)
    result = {
        "model": {**model, "weights": weights, "tokenizer": experiment.tokenizer.fingerprint()},
        "suites": results,
        "versions": package_versions(),
        "python": platform.python_version(),
        "devices": sorted({device.device_kind for device in jax.devices()}),
    }
    if writes and plan.out is not None:
        if plan.parquet:
            write_parquet(plan.out / PARQUET, lines)
        if plan.lm_eval:
            write_lm_eval(plan.out, lines)
        write_atomically(plan.out / RESULT, json.dumps(result, indent=2).encode() + b"\n")
    assert first is not None
    return result, first


def _new_file(path: Path) -> BinaryIO:
    """Open a file that is empty or not there. Raises FileExistsError for any other."""
    file = path.open("ab")
    if file.tell():
        file.close()
        raise FileExistsError(f"{path} is there already; choose a new folder")
    return file


def _ask(
    engine: RolloutEngine,
    params: dict,
    suite: Suite,
    problems: Sequence[Problem],
    plan: EvaluationPlan,
    display: Progress,
    file: BinaryIO | None,
) -> tuple[Evaluated, list[Line]]:
    """Sample and grade the responses to a suite; returns them a line each, and writes each batch to `file` at once."""
    lines: list[Line] = []
    sampling = suite.sampling or engine.experiment.sampling
    display.say(
        f"{suite.name}: {len(problems)} problems x {engine.samples} samples of at most {sampling.max_tokens} tokens"
    )
    with ExitStack() as stack:
        phase = stack.enter_context(display.phase(suite.name, len(problems)))
        stored = None
        if plan.responses is not None:
            stored = stack.enter_context(SamplesFile(engine, params, plan.responses, sampling.temperature, plan.logits))

        def keep(part: Sequence[Problem], graded: GradedRollout) -> None:
            if stored is not None:
                stored.add(part, graded)
            new = lines_of(suite, part, graded)
            lines.extend(new)
            if file is not None:
                file.writelines(map(json_line, new))
                file.flush()
            right = sum(line["grade"] or 0.0 for line in lines) / len(lines)
            done = len(lines) // engine.samples
            phase.update(done, tokens=sum(line["tokens"] for line in new), accuracy=right)

        noise_key = key(plan.seed, Purpose.EVALUATION)
        return evaluate(engine, keep, params, problems, noise_key, sampling), lines


def _summary(
    tokenizer: Any, suite: Suite, problems: Sequence[Problem], lines: Sequence[Line], plan: EvaluationPlan
) -> dict[str, Any]:
    """Result of one suite as JSON values: estimates with intervals, and everything that decided them."""
    grades, votes = by_problem(lines)
    failed = Counter(line["status"] for line in lines if line["status"] != "ok")
    unanswered = sum(line["answer"] is None for line in lines)
    style = {name: getattr(tokenizer, name, None) for name in ("chat", "system", "thinking")}
    assert suite.sampling is not None
    return {
        "task": suite.task.name,
        "split": suite.split,
        "problems": len(problems),
        "samples": len(lines) // len(problems),
        "prompt": {"template": suite.prompt, "stop": list(suite.stop), **style},
        "sampling": asdict(suite.sampling),
        "seed": plan.seed,
        "fingerprint": suite_fingerprint(suite, problems),
        "avg_at_k": asdict(average(grades)),
        "pass_at_k": {str(k): asdict(pass_at(grades, k)) for k in plan.ks},
        "maj_at_k": {str(k): asdict(majority_at(grades, votes, k)) for k in plan.ks},
        "truncated": sum(line["finish_reason"] == "length" for line in lines) / len(lines),
        "response_length": sum(line["tokens"] for line in lines) / len(lines),
        "tokens": sum(line["tokens"] for line in lines),
        "without_answer": unanswered / len(lines),
        "ungraded": dict(failed),
    }


def suite_fingerprint(suite: Suite, problems: Sequence[Problem]) -> str:
    """SHA-256 over everything that is asked and its gold answers, in any order of the file."""
    content = sorted([problem.id, shown(problem), problem.answer] for problem in problems)
    return hashlib.sha256(json.dumps([suite.name, list(suite.stop), content]).encode()).hexdigest()
