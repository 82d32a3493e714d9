"""`rl-llm generate`: answer one prompt with the policy of a run, or the model of a Hugging Face folder."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_llm.commands.common import DONE, UsageError, add_trust, positive, trust_folders
from rl_llm.config.terminal import show

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from rl_llm.sampler import Sampling

SUMMARY = "answer a prompt with a run's policy or a Hugging Face folder"
EXAMPLES = """examples:
  rl-llm generate runs/slower "17+25="
  rl-llm generate runs/slower "17+25=" --samples 4 --seed 1    four responses
  rl-llm generate SmolLM2-135M-Instruct - < question.txt       a prompt from standard input, greedy: --temperature 0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `generate`."""
    parser.add_argument("folder", metavar="RUN|FOLDER", help="a run folder, or a Hugging Face folder")
    parser.add_argument("prompt", help="the prompt, or - to read it from standard input")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 for greedy (default: the run's; 0.6)")
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="longest response (default: the run's; 512)")
    parser.add_argument("--samples", type=positive, default=1, metavar="N", help="number of responses (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print responses to one prompt, and whether each has stopped or was cut.

    The prompt is encoded as in training, by the chat template if the tokenizer has one, and sampled as the run does.
    Control characters of responses are escaped.
    """
    from rl_llm.parallel.mesh import MeshShape, make_meshes
    from rl_llm.runs.checkpoint import CheckpointError
    from rl_llm.runs.load import RecordError

    if arguments.trust:
        trust_folders(arguments.folder)
    prompt = sys.stdin.read().removesuffix("\n") if arguments.prompt == "-" else arguments.prompt
    try:
        mesh = make_meshes(MeshShape(), None).learner
        model, params, tokenizer, sampling = _policy(arguments.folder, mesh)
        if arguments.temperature is not None:
            sampling = sampling.at(arguments.temperature)
        sampling = replace(sampling, max_tokens=arguments.max_tokens or sampling.max_tokens)
        texts = _responses(mesh, model, params, tokenizer, sampling, prompt, arguments.samples, arguments.seed)
    except (ValueError, OSError, RecordError, CheckpointError) as error:
        raise UsageError(str(error)) from error
    for text, tokens, cut in texts:
        show(text)
        show(f"[{tokens} tokens, {'cut by --max-tokens' if cut else 'stopped'}]", file=sys.stderr)
    return DONE


def _policy(folder: str, mesh: "Mesh") -> "tuple[Any, dict, Any, Sampling]":
    """Model, parameters, tokenizer and sampling of a run or a Hugging Face folder."""
    from rl_llm.learner.state import policy_of
    from rl_llm.model.huggingface import read_model
    from rl_llm.runs.load import newest_state, recorded_experiment
    from rl_llm.sampler import Sampling
    from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer
    from rl_llm.tasks.tokenizer_files import read_files

    if (Path(folder) / "config.json").is_file():
        loaded = read_model(folder, mesh)
        tokenizer = HuggingFaceTokenizer(folder, chat=read_files(folder).template is not None)
        return loaded.config, loaded.params, tokenizer, Sampling(max_tokens=512, temperature=0.6, top_p=0.95)
    experiment, _ = recorded_experiment(folder)
    state = newest_state(experiment, folder, mesh).state
    return experiment.model, policy_of(state), experiment.tokenizer, experiment.sampling


def _responses(
    mesh: "Mesh",
    model: Any,
    params: dict,
    tokenizer: Any,
    sampling: "Sampling",
    prompt: str,
    samples: int,
    seed: int,
) -> list[tuple[str, int, bool]]:
    """Text, number of tokens, and whether it was cut, of each response."""
    from rl_llm.parallel import hosts
    from rl_llm.parallel.mesh import data_parallel_size, put_on_batch
    from rl_llm.prng import Purpose, key
    from rl_llm.problem import Problem
    from rl_llm.rollout.text import decode_responses, encode_prompts, encode_shown
    from rl_llm.sampler import compile_sampler

    problem = Problem(id=0, prompt=prompt, answer="")
    width = max(1, len(encode_shown(tokenizer, problem)))
    rows = [problem] * data_parallel_size(mesh)  # every device needs one; the first is shown
    prompts = put_on_batch(mesh, encode_prompts(tokenizer, rows, width, "", model.vocabulary))
    sample = compile_sampler(model, mesh, samples, sampling.max_tokens)
    rollout = sample(params, prompts, key(seed, Purpose.EVALUATION), sampling.values(tokenizer.stop_ids))
    mask, cut = hosts.to_host((rollout.mask, rollout.truncated))
    texts = decode_responses(tokenizer, rollout)
    return [(texts[i], int(mask[i].sum()), bool(cut[i])) for i in range(samples)]
