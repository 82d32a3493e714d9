"""`rl-llm generate`: answer one prompt with the policy of a run, or the model of a Hugging Face folder."""

import argparse
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rl_llm.commands.common import DONE, UsageError, add_step, add_trust, positive, seed, trust_folders
from rl_llm.config.terminal import show
from rl_llm.problem import Problem, Split

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from rl_llm.experiment import Experiment
    from rl_llm.sampler import Sampling

FOLDER_TOKENS = 512  # longest response of a folder's model
SUMMARY = "answer a prompt with a run's policy or a Hugging Face folder"
EXAMPLES = """examples:
  rl-llm generate runs/slower "17+25="
  rl-llm generate runs/slower "17+25=" --samples 4 --seed 1    four responses
  rl-llm generate SmolLM2-135M-Instruct - < question.txt       a prompt from standard input, greedy: --temperature 0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `generate`."""
    parser.add_argument("folder", metavar="RUN|FOLDER", help="a run folder, or a Hugging Face folder")
    parser.add_argument("prompt", help="the prompt, or - to read it from standard input")
    add_step(parser, "a run's checkpoint to ask")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 for greedy (default: the run's; 0.6)")
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="longest response (default: the run's; 512)")
    parser.add_argument("--samples", type=positive, default=1, metavar="N", help="number of responses (default: 1)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the sampling (default: 0)")
    add_trust(parser)


@dataclass(frozen=True)
class OnePrompt:
    """Task of one prompt. Its responses are shown, not graded."""

    prompt: str
    name: ClassVar[str] = "prompt"

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """The prompt as a problem without an answer."""
        return [Problem(id=0, prompt=self.prompt, answer="")]

    def verify(self, problem: Problem, response: str) -> float:
        """Nothing is right."""
        return 0.0


def run(arguments: argparse.Namespace) -> int:
    """Print responses to one prompt, and whether each has stopped or was cut.

    The prompt is encoded as in training, by the chat template if the tokenizer has one, and sampled as the run does.
    Control characters of responses are escaped.
    """
    from rl_llm.evaluation.subject import PUBLISHED, named_step, open_subject
    from rl_llm.parallel.mesh import MeshShape, make_meshes
    from rl_llm.runs.checkpoint import CheckpointError
    from rl_llm.runs.load import RecordError

    if arguments.trust:
        trust_folders(arguments.folder)
    task = OnePrompt(sys.stdin.read().removesuffix("\n") if arguments.prompt == "-" else arguments.prompt)
    try:
        subject = open_subject(arguments.folder, arguments.step, task, verb="ask")
        experiment, is_run = subject.experiment, subject.record is not None
        meshes = make_meshes(MeshShape() if is_run else experiment.mesh, None)
        sampling = experiment.sampling if is_run else replace(PUBLISHED, max_tokens=FOLDER_TOKENS)
        if arguments.temperature is not None:
            sampling = sampling.at(arguments.temperature)
        sampling = replace(sampling, max_tokens=arguments.max_tokens or sampling.max_tokens)
        params, described = subject.load(meshes)
        texts = _responses(experiment, meshes.learner, params, task, sampling, arguments.samples, arguments.seed)
    except (ValueError, OSError, RecordError, CheckpointError) as error:
        raise UsageError(str(error)) from error
    if is_run:
        show(f"[{named_step(experiment, described['step'])}]", file=sys.stderr)
    for text, tokens, cut in texts:
        show(text)
        show(f"[{tokens} tokens, {'cut by --max-tokens' if cut else 'stopped'}]", file=sys.stderr)
    return DONE


def _responses(
    experiment: "Experiment",
    mesh: "Mesh",
    params: dict,
    task: OnePrompt,
    sampling: "Sampling",
    samples: int,
    seed: int,
) -> list[tuple[str, int, bool]]:
    """Text, number of tokens, and whether it was cut, of each response."""
    from rl_llm.parallel import hosts
    from rl_llm.parallel.mesh import data_parallel_size, put_on_batch
    from rl_llm.prng import Purpose, key
    from rl_llm.rollout.text import decode_responses, encode_prompts, encode_shown
    from rl_llm.sampler import compile_sampler

    model, tokenizer = experiment.model, experiment.tokenizer
    (problem,) = task.problems("held_out", 1, 0)
    width = max(1, len(encode_shown(tokenizer, problem)))
    rows = [problem] * data_parallel_size(mesh)  # every device needs one; the first is shown
    prompts = put_on_batch(mesh, encode_prompts(tokenizer, rows, width, "", model.vocabulary))
    sample = compile_sampler(model, mesh, samples, sampling.max_tokens)
    rollout = sample(params, prompts, key(seed, Purpose.EVALUATION), sampling.values(tokenizer.stop_ids))
    mask, cut = hosts.to_host((rollout.mask, rollout.truncated))
    texts = decode_responses(tokenizer, rollout)
    return [(texts[i], int(mask[i].sum()), bool(cut[i])) for i in range(samples)]
