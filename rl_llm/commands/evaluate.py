"""`rl-llm evaluate`: a run's newest checkpoint on more problems."""

import argparse
import json
import sys
from pathlib import Path

from rl_llm.commands.common import DONE, FAILED, UsageError

SUMMARY = "evaluate a run's newest checkpoint"
EXAMPLES = """examples:
  rl-llm evaluate runs/slower                                  as the run itself did it
  rl-llm evaluate runs/slower --problems 500 --temperature 0   greedy, on more problems
  rl-llm evaluate runs/slower --split train                    has it learned its training problems by heart?
  rl-llm evaluate runs/slower --split train --problems 500 --samples graded.jsonl    to learn from elsewhere"""


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--split", choices=("train", "validation", "held_out"), default="held_out")
    parser.add_argument("--problems", type=int, metavar="N", help="how many problems (default: as in the experiment)")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="sampling temperature, 0 for greedy (default: as in the experiment)",
    )
    parser.add_argument(
        "--samples", type=Path, metavar="FILE", help="write all responses with their rewards there (StoredResponses)"
    )
    parser.add_argument(
        "--logits", type=int, default=0, metavar="K", help="with --samples: and the K likeliest tokens at each place"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the newest good checkpoint of a run folder on one split and print the outcome as JSON.

    Accuracy over K samples per problem, pass@k, mean response length in tokens, share of truncated responses. As
    `train`, in one process or in several, of which the first one writes and prints.
    """
    if arguments.problems is not None and arguments.problems < 1:
        raise UsageError(f"--problems must be at least 1, not {arguments.problems}")
    if arguments.logits and arguments.samples is None:
        raise UsageError(f"--logits {arguments.logits} cannot act without --samples FILE")
    if arguments.samples is not None and arguments.samples.exists():
        raise UsageError(f"{arguments.samples} is there already: choose another --samples")
    if arguments.samples is not None and not arguments.samples.parent.is_dir():
        raise UsageError(f"--samples {arguments.samples}: there is no folder {arguments.samples.parent}")

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
        raise UsageError("--logits at --temperature 0: a greedy choice has no distribution")
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
    except (Exception, KeyboardInterrupt):  # all others are raised in all processes
        hosts.leave_others(FAILED)
        raise
    if hosts.writes():
        print(json.dumps({"split": arguments.split, **outcome}, indent=2))
    return DONE
