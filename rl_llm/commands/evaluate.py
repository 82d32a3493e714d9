"""`rl-llm evaluate`: evaluate a run's newest checkpoint, on more problems if asked."""

import argparse
import json
import sys
from pathlib import Path

from rl_llm.commands.common import DONE, FAILED, UsageError, check_output, positive

SUMMARY = "evaluate a run's newest checkpoint"
EXAMPLES = """examples:
  rl-llm evaluate runs/slower                                  repeat the run's own evaluation
  rl-llm evaluate runs/slower --problems 500 --temperature 0   greedy, on more problems
  rl-llm evaluate runs/slower --split train                    has it memorised its training problems?
  rl-llm evaluate runs/slower --split train --problems 500 --samples graded.jsonl    graded responses, to train on"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    splits = ("train", "validation", "held_out")
    parser.add_argument("--split", choices=splits, default="held_out", help="split of the problems (default: held_out)")
    parser.add_argument("--problems", type=positive, metavar="N", help="number of problems (default: the experiment's)")
    temperature = "sampling temperature, 0 for greedy (default: the experiment's)"
    parser.add_argument("--temperature", type=float, metavar="T", help=temperature)
    samples = "write all responses with their rewards to this file, as StoredResponses reads them"
    parser.add_argument("--samples", type=Path, metavar="FILE", help=samples)
    logits = "with --samples: also store the K likeliest tokens at each position"
    parser.add_argument("--logits", type=int, default=0, metavar="K", help=logits)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the newest good checkpoint of a run on one split and print the result as JSON.

    Reports accuracy over K samples per problem, pass@k, mean response length in tokens and the share of truncated
    responses. Like `train`, it may run in several processes; the first one writes and prints.
    """
    if arguments.logits and arguments.samples is None:
        raise UsageError(f"--logits {arguments.logits} cannot act without --samples FILE")
    check_output("samples", arguments.samples)
    from rl_llm.parallel import hosts

    try:
        hosts.join()
    except hosts.HostsError as error:
        raise UsageError(str(error)) from error
    from rl_llm.parallel.mesh import make_meshes
    from rl_llm.prepare import problems_of_split
    from rl_llm.rewards.grader import GradingError
    from rl_llm.rollout.evaluate import evaluate_checkpoint
    from rl_llm.runs.checkpoint import CheckpointError
    from rl_llm.runs.load import RecordError, recorded_experiment

    try:
        experiment, record = recorded_experiment(arguments.folder)
    except RecordError as error:
        raise UsageError(str(error)) from error
    if not 0 <= arguments.logits <= experiment.model.vocabulary:
        raise UsageError(f"--logits {arguments.logits}: the vocabulary has {experiment.model.vocabulary} tokens")
    if arguments.logits and arguments.temperature == 0:
        raise UsageError("--logits cannot act at --temperature 0: a greedy choice has no distribution")
    seed, sampling = record["seed"], experiment.sampling
    try:
        if arguments.temperature is not None:
            sampling = sampling.at(arguments.temperature)
        count = arguments.problems or experiment.evaluation.problems
        problems = problems_of_split(experiment, arguments.split, count, seed)
        meshes = make_meshes(experiment.mesh, experiment.sampler_mesh)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    try:
        outcome = evaluate_checkpoint(
            experiment, seed, arguments.folder, meshes, problems, sampling, arguments.samples, arguments.logits
        )
    except (CheckpointError, GradingError) as error:
        print(f"rl-llm evaluate: {error}", file=sys.stderr)
        return FAILED
    except (Exception, KeyboardInterrupt):  # unlike those above, perhaps in one process only
        hosts.leave_others(FAILED)
        raise
    if hosts.writes():
        print(json.dumps({"split": arguments.split, **outcome}, indent=2))
    return DONE
