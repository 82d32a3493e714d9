"""`rl-llm evaluate`: evaluate a run or a Hugging Face folder on benchmarks, or a run on its own problems."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_llm.commands.common import (
    DONE,
    FAILED,
    UsageError,
    add_step,
    add_trust,
    check_devices,
    check_output,
    positive,
    seed,
    trust_folders,
)
from rl_llm.config.terminal import show

if TYPE_CHECKING:
    from rl_llm.evaluation.run import EvaluationPlan
    from rl_llm.evaluation.subject import Subject
    from rl_llm.experiment import Experiment, Suite
    from rl_llm.problem import Problem, Split

SUMMARY = "evaluate a run or a Hugging Face folder, on benchmarks or on a run's own problems"
WRITTEN = ("evaluation.json", "samples.jsonl")
OTHERS = {
    "experiment.json": "a run",
    "study.json": "a study",
    "config.json": "a model",
    "adapter_config.json": "adapters",
}
EXAMPLES = """examples:
  rl-llm evaluate runs/slower                                  repeat the run's own evaluation
  rl-llm evaluate runs/slower --problems 500 --temperature 0   greedy, on more problems
  rl-llm evaluate runs/slower --split train                    has it memorised its training problems?
  rl-llm evaluate Qwen3-4B --suite math500=test.jsonl --suite aime24=aime.jsonl --samples 8 --pass-at 1,4,8 --out qwen3
  rl-llm evaluate runs/slower --suite gsm8k=test.jsonl --step 200 --out at200      an older checkpoint
  rl-llm evaluate runs/slower --split train --problems 500 --responses graded.jsonl    graded responses, to train on"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    parser.add_argument("folder", metavar="RUN|FOLDER", help="a run folder, or a Hugging Face folder")
    suite = "a benchmark and the file with its problems; may be repeated. NAME is gsm8k, math500, aime24, aime25, "
    suite += "amc23, minerva, olympiadbench or reasoning_gym"
    parser.add_argument("--suite", action="append", default=[], metavar="NAME=FILE", help=suite)
    splits, split = ("train", "validation", "held_out"), "without --suite: split of the run's problems"
    parser.add_argument("--split", choices=splits, help=f"{split} (default: held_out)")
    problems = "number of problems (default: the experiment's, or all of a suite)"
    parser.add_argument("--problems", type=positive, metavar="N", help=problems)
    samples = "responses to each problem (default: the run's; 1 for a folder or at temperature 0)"
    parser.add_argument("--samples", type=positive, metavar="K", help=samples)
    ks = "numbers of samples k for pass@k and maj@k (default: 1 and K)"
    parser.add_argument("--pass-at", type=_numbers, metavar="K,K", help=ks)
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder for evaluation.json and samples.jsonl")
    parser.add_argument("--parquet", action="store_true", help="with --out: also write samples.parquet")
    lm_eval = "with --out: also write samples_SUITE_TIME.jsonl, as lm-evaluation-harness does with --log_samples"
    parser.add_argument("--lm-eval", action="store_true", help=lm_eval)
    add_step(parser, "checkpoint of a run")
    temperature = "sampling temperature, 0 for greedy (default: the run's; 0.6 for a folder)"
    parser.add_argument("--temperature", type=float, metavar="T", help=temperature)
    parser.add_argument("--top-p", type=float, metavar="P", help="nucleus (default: the run's; 0.95 for a folder)")
    tokens = "longest response (default: the run's; 2048 for a folder)"
    parser.add_argument("--max-tokens", type=positive, metavar="N", help=tokens)
    parser.add_argument("--seed", type=seed, metavar="N", help="seed of the noise (default: the run's; 0 for a folder)")
    prompt = "file with the text around {question} (default: a run's own prompts; for a folder, those of the suite)"
    parser.add_argument("--prompt", type=Path, metavar="FILE", help=prompt)
    stop = "with --prompt: a text that ends a response; may be repeated. A few-shot prompt needs it"
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help=stop)
    chat = "a folder: show prompts without its chat template, as to a base model"
    parser.add_argument("--no-chat", dest="chat", action="store_false", help=chat)
    rows = "responses that are sampled at once (default: as in the run; 64 for a folder)"
    parser.add_argument("--rows", type=positive, metavar="N", help=rows)
    add_trust(parser)
    responses = "write all responses with their rewards to this file, as StoredResponses reads them"
    parser.add_argument("--responses", type=Path, metavar="FILE", help=responses)
    logits = "with --responses: also store the K likeliest tokens at each position"
    parser.add_argument("--logits", type=int, default=0, metavar="K", help=logits)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part) for part in text.split(",")}))


def run(arguments: argparse.Namespace) -> int:
    """Evaluate a policy and print the result as JSON: accuracy (avg@k), pass@k and maj@k with 95 % intervals.

    The intervals are clustered by problem. Length, truncated share, sampling, prompt and fingerprints are part of the
    result. With --out they go to evaluation.json, and every response to samples.jsonl. Without --suite, a run is
    evaluated on its own problems. Like `train`, the command may run in several processes; the first writes and prints.
    """
    _check_options(arguments)
    from rl_llm.parallel import hosts

    try:
        hosts.join()
    except hosts.HostsError as error:
        raise UsageError(str(error)) from error
    check_devices()
    from rl_llm.evaluation.presets import parse_suites
    from rl_llm.evaluation.run import evaluate_suites
    from rl_llm.evaluation.subject import open_subject
    from rl_llm.parallel.mesh import make_meshes
    from rl_llm.rewards.grader import GradingError
    from rl_llm.runs.checkpoint import CheckpointError
    from rl_llm.runs.load import RecordError

    if arguments.trust:
        trust_folders(arguments.folder)
    try:
        suites = parse_suites(arguments.suite)
        task = suites[0].task if suites else None
        subject = open_subject(arguments.folder, arguments.step, task, arguments.chat)
        plan = _plan(arguments, subject, suites)
        meshes = make_meshes(subject.experiment.mesh, subject.experiment.sampler_mesh)
    except (ValueError, OSError, ImportError, RecordError) as error:
        raise UsageError(str(error)) from error
    try:
        result, first = evaluate_suites(subject, meshes, plan)
    except (CheckpointError, GradingError, RecordError) as error:
        show(f"rl-llm evaluate: {error}", file=sys.stderr)
        return FAILED
    except (Exception, KeyboardInterrupt):  # unlike those above, perhaps in one process only
        hosts.leave_others(FAILED)
        raise
    if hosts.writes():
        own = {} if suites else _own_numbers(subject, plan, result, first.numbers())
        show(json.dumps({**own, **result}, indent=2))
    return DONE


def _own_numbers(
    subject: "Subject", plan: "EvaluationPlan", result: dict[str, Any], numbers: dict[str, Any]
) -> dict[str, Any]:
    """Numbers of a run's own evaluation, under the names that its summary has."""
    suite, problems = plan.asked[0]
    assert suite.sampling is not None
    K = suite.samples or subject.experiment.responses_per_prompt
    if suite.sampling.temperature == 0:  # all samples are the one
        K = subject.experiment.responses_per_prompt
        numbers["pass_at_k"] = {str(k): numbers["accuracy"] for k in (1, K)}
    named = {"split": suite.split, "step": result["model"]["step"], "problems": len(problems)}
    return {**named, "responses_per_prompt": K, "temperature": suite.sampling.temperature, **numbers}


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise UsageError for options that cannot act together, and for files that are there or cannot be written."""
    needs = {"logits": "responses", "stop": "prompt", "parquet": "out", "lm_eval": "out", "prompt": "suite"}
    for option, needed in needs.items():
        if getattr(arguments, option) and not getattr(arguments, needed):
            raise UsageError(f"--{option.replace('_', '-')} cannot act without --{needed}")
    if arguments.suite and arguments.split:
        raise UsageError(f"--split {arguments.split} cannot act with --suite: a suite's file is asked as a whole")
    if arguments.responses and len(arguments.suite) > 1:
        raise UsageError("--responses holds the responses to one suite; give one --suite")
    if arguments.temperature == 0 and (arguments.samples or 1) > 1:
        raise UsageError(f"--samples {arguments.samples} cannot act at --temperature 0: all samples are the same")
    if arguments.logits and arguments.temperature == 0:
        raise UsageError("--logits cannot act at --temperature 0: a greedy choice has no distribution")
    check_output("responses", arguments.responses)
    if arguments.out is not None:
        _check_folder(arguments.out, arguments.parquet)


def _check_folder(out: Path, parquet: bool) -> None:
    """Raise UsageError if --out is a file, the folder of something else, or has files that would be overwritten."""
    if not out.is_dir():
        if out.exists():
            raise UsageError(f"--out {out} is a file; give a folder")
        check_output("out", out)
    for name, kind in OTHERS.items():
        if (out / name).exists():
            raise UsageError(f"--out {out} is the folder of {kind}, as {name} in it says: choose a new folder")
    for name in (*WRITTEN, *(["samples.parquet"] if parquet else [])):
        if (out / name).exists() and (out / name).stat().st_size:
            raise UsageError(f"--out {out} already has {name}, which would be overwritten: choose a new folder")


def _plan(arguments: argparse.Namespace, subject: "Subject", suites: "list[Suite]") -> "EvaluationPlan":
    """Read the problems and decide how they are asked. Raises UsageError, ValueError or OSError."""
    from rl_llm.evaluation.run import EvaluationPlan
    from rl_llm.experiment import Suite
    from rl_llm.prepare import check_suite

    experiment = subject.experiment
    if not 0 <= arguments.logits <= experiment.model.vocabulary:
        raise UsageError(f"--logits {arguments.logits}: the vocabulary has {experiment.model.vocabulary} tokens")
    sampling = _sampling(arguments, experiment.sampling)
    greedy, record = sampling.temperature == 0, subject.record
    K = 1 if greedy else arguments.samples or (1 if record is None else experiment.responses_per_prompt)
    ks = arguments.pass_at or tuple(sorted({1, K}))
    if max(ks) > K:
        remedy = "all are the same at temperature 0; only --pass-at 1 can act" if greedy else "set --samples"
        raise UsageError(f"--pass-at {max(ks)} needs as many samples of a problem, and there are {K}: {remedy}")
    asked: list[tuple[Suite, Any]] = []
    for suite in suites:
        wanted = replace(
            suite, samples=K, sampling=sampling, problems=arguments.problems, **_style(arguments, suite, record)
        )
        asked.append((wanted, wanted.ask()))
    if not suites:
        split: Split = arguments.split or "held_out"
        count = arguments.problems or experiment.evaluation.problems
        problems = problems_of_split(experiment, split, count, subject.seed)
        asked.append((Suite(split, experiment.task, split, count, samples=K, sampling=sampling), problems))
    for suite, problems in asked:
        check_suite(experiment, suite, problems)
    if suites:
        _note(subject, asked)
    noise = subject.seed if arguments.seed is None else arguments.seed
    files = arguments.out, arguments.parquet, arguments.lm_eval, arguments.responses, arguments.logits
    return EvaluationPlan(asked, ks, noise, arguments.rows or 0, *files)


def problems_of_split(experiment: "Experiment", split: "Split", count: int, seed: int) -> "Sequence[Problem]":
    """Take `count` problems of a split for an evaluation, the run's own ones first.

    Raises ValueError for more training problems than the run trained on.
    """
    from rl_llm.prepare import counts

    own = counts(experiment)[split]
    if split == "train" and count > own:
        raise ValueError(
            f"count={count} train problems is out of range; expected at most the {own} that the run trained on"
        )
    return experiment.task.problems(split, max(count, own), seed)[:count]


def _note(subject: "Subject", asked: "Sequence[tuple[Suite, Sequence[Problem]]]") -> None:
    """Say on standard error which suites have repeated rows, and which have training problems of the run."""
    from rl_llm.evaluation.shared import learned_problems, lost_rows, shared_problems
    from rl_llm.parallel import hosts

    experiment = subject.experiment
    notes = [note for suite, problems in asked if (note := lost_rows(suite, problems))]
    if subject.record is not None:
        try:
            problems = learned_problems(experiment, subject.seed) | {suite.key: found for suite, found in asked}
            notes += shared_problems(experiment, [suite for suite, _ in asked], problems)
        except (ValueError, OSError) as error:
            notes.append(f"the run's training problems cannot be read, so none was looked for in the suites: {error}")
    for note in notes if hosts.writes() else ():
        show(f"note: {note}", file=sys.stderr)


def _sampling(arguments: argparse.Namespace, sampling: Any) -> Any:
    if arguments.temperature is not None:
        sampling = sampling.at(arguments.temperature)
    changes = {"top_p": arguments.top_p, "max_tokens": arguments.max_tokens}
    return replace(sampling, **{name: value for name, value in changes.items() if value is not None})


def _style(arguments: argparse.Namespace, suite: "Suite", record: dict[str, Any] | None) -> dict[str, Any]:
    """Prompt of a suite: the given one, a run's own, or for a folder that of the benchmark."""
    from rl_llm.evaluation.presets import BENCHMARKS

    if arguments.prompt is not None:
        return {
            "prompt": arguments.prompt.read_text(encoding="utf-8").removesuffix("\n"),
            "stop": tuple(arguments.stop),
        }
    return {"prompt": BENCHMARKS[suite.name].prompt if record is None else None}
