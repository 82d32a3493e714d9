"""Preparation of a run: meshes, problems and source models, and every check that needs no writing."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

from rl_llm.experiment import Experiment
from rl_llm.experiment.suite import SUITE, Suite
from rl_llm.model import weight_table
from rl_llm.model.huggingface import readable_positions, yarn_fields
from rl_llm.model.huggingface.adapters import model_folder
from rl_llm.parallel import mesh as meshes
from rl_llm.prng import Purpose, generator
from rl_llm.problem import Problem, Split
from rl_llm.rollout.offline import read_responses
from rl_llm.rollout.text import check_ids, encode_prompts, encode_responses, longest_prompt
from rl_llm.runs.load import SourceModels, load_source_models
from rl_llm.tasks.conversations import read_conversations

# By split; also "stored" (with stored responses), "conversations" (of the warm start's file), and suites by their key.
Problems = Mapping[str, Sequence[Problem]]


def prepare(experiment: Experiment, seed: int) -> tuple[meshes.Meshes, Problems, SourceModels]:
    """Make the meshes, the problems and the source models of a run.

    Raises ValueError, RecordError or CheckpointError if the run cannot work on this machine or with this task.
    """
    experiment.tokenizer.check_vocabulary(experiment.model.vocabulary)
    experiment.sampling.values(experiment.tokenizer.stop_ids)  # raises if there are too many
    both = meshes.make_meshes(experiment.mesh, experiment.sampler_mesh)
    for mesh in (both.learner, both.sampler):
        meshes.weight_shardings(mesh, weight_table(experiment.model))
    check_shares(experiment, *map(meshes.data_parallel_size, (both.learner, both.sampler)))
    problems: dict[str, Sequence[Problem]] = {
        split: experiment.task.problems(split, count, seed) for split, count in counts(experiment).items()
    }
    for split, found in problems.items():
        if len(found) < (least := experiment.prompts_per_step if split == "train" else 1):
            raise ValueError(
                f"task {experiment.task.name} has {len(found)} {split} problems; a step needs at least {least}"
            )
    if experiment.curriculum.difficulty and len({problem.difficulty for problem in problems["train"]}) == 1:
        raise ValueError(
            f"curriculum.difficulty cannot act: all train problems of {experiment.task.name} are equally difficult"
        )
    if experiment.responses is not None:
        stored = experiment.responses.problems(experiment.responses_per_prompt)
        if len(stored) < experiment.prompts_per_step:
            raise ValueError(
                f"{experiment.responses.path} has {len(stored)} prompts; a step needs {experiment.prompts_per_step}"
            )
        read_responses(experiment, stored)
        problems["stored"] = stored
    longest = _check_widths(experiment, problems, seed)
    file = experiment.warm_start and experiment.warm_start.demonstrations
    if file:
        found = read_conversations(file.path, file.data_dir, experiment.tokenizer, file.row_tokens)
        rows, texts = [problem.metadata["tokens"] for problem in found], [problem.prompt for problem in found]
        check_ids(experiment.tokenizer, rows, texts, experiment.model.vocabulary)
        problems["conversations"] = found
    suites = {suite: suite.ask() for suite in experiment.evaluation.suites}
    problems |= {suite.key: found for suite, found in suites.items()}
    _check_positions(experiment, longest, problems)
    for suite, found in suites.items():
        check_suite(experiment, suite, found)
    return both, problems, load_source_models(experiment, both.learner)


def counts(experiment: Experiment) -> dict[Split, int]:
    """Number of problems of each split that a run uses."""
    return {
        "train": experiment.train_problems,
        "validation": experiment.prompts_per_step,
        "held_out": experiment.evaluation.problems,
    }


def problems_fingerprint(problems: Problems, sources: SourceModels) -> str:
    """SHA-256 over the problems of every split and the source models; a resumed run must find the same."""
    content: dict[str, list] = {
        split: [[p.id, p.prompt, p.answer, *([dict(p.metadata)] if split == "stored" else [])] for p in found]
        for split, found in problems.items()
        if not split.startswith(SUITE)
    }
    content |= {"sources": list(sources.origins)} if sources.origins else {}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def shares(experiment: Experiment) -> dict[str, int]:
    """Prompts or rows that must divide over the learner's devices, by the fields that decide them."""
    warm_start, mixture = experiment.warm_start, experiment.mixture
    file = warm_start and warm_start.demonstrations
    updates, parts = experiment.updates_per_rollout, experiment.micro_batches
    found = {
        f"prompts_per_step={experiment.prompts_per_step} / updates_per_rollout={updates} / micro_batches={parts}": (
            experiment.prompts_per_step // (updates * parts)
        )
    }
    if file:
        name = f"warm_start.demonstrations.rows_per_step={file.rows_per_step} / micro_batches={file.micro_batches}"
        found[name] = file.rows_per_step // file.micro_batches
    if warm_start and warm_start.demonstrations_per_step:
        found["warm_start.demonstrations_per_step"] = warm_start.demonstrations_per_step
    if mixture:
        found["mixture.per_update"] = mixture.per_update
    return found


def check_shares(experiment: Experiment, learning: int, sampling: int) -> None:
    """Raise ValueError unless rows divide over the data-parallel devices of the learner and of the sampler."""
    for name, count in shares(experiment).items():
        if count % learning:
            raise ValueError(
                f"{name} is {count}; expected a multiple of {learning} data-parallel devices (data x fsdp)"
            )
    N, parts = experiment.prompts_per_step, experiment.sampling_batches
    if (N // parts) % sampling:
        raise ValueError(
            f"prompts_per_step={N} / sampling_batches={parts} is {N // parts}; expected a multiple of the sampler's "
            f"{sampling} data-parallel devices (data x fsdp)"
        )


def _check_widths(experiment: Experiment, problems: Problems, seed: int) -> int:
    """Check that every prompt fits, with the gate's prefix if used, and a demonstration of every problem.

    Returns the length of the longest prompt in tokens.
    """
    tokenizer, width, warm_start = experiment.tokenizer, experiment.max_prompt_tokens, experiment.warm_start
    vocabulary = experiment.model.vocabulary
    prompts = [encode_prompts(tokenizer, found, width, vocabulary=vocabulary) for found in problems.values()]
    if warm_start and warm_start.gate:
        encode_prompts(tokenizer, problems["validation"], width, warm_start.gate.prefix, vocabulary)
    for name, part in (("warm_start", warm_start), ("mixture", experiment.mixture)):
        if part is not None and part.max_tokens is not None:
            draw = generator(seed, Purpose.DEMONSTRATIONS)
            responses = [experiment.task.demonstrate(problem, draw) for problem in problems["train"]]  # type: ignore[attr-defined]
            encode_responses(tokenizer, responses, part.max_tokens, f"{name}.max_tokens", vocabulary)
    return max(int(encoded.lengths.max()) for encoded in prompts)


def _check_positions(experiment: Experiment, longest: int, problems: Problems) -> None:
    """Raise ValueError for texts longer than the model of a Hugging Face folder can read, as servers do."""
    warm_start = experiment.warm_start
    limits = {"sampling.max_tokens": experiment.sampling.max_tokens}
    for name, part in (("warm_start", warm_start), ("mixture", experiment.mixture)):
        limits |= {f"{name}.max_tokens": part.max_tokens} if part and part.max_tokens else {}
    field, response = max(limits.items(), key=lambda item: item[1])
    texts = {f"the longest prompt, {longest} tokens, with a response of {field}={response}": longest + response}
    for conversation in problems.get("conversations", ()):
        tokens = len(conversation.metadata["tokens"])
        texts[f"the conversation {conversation.prompt[:60]!r}, {tokens} tokens,"] = tokens
    text, length = max(texts.items(), key=lambda item: item[1])
    _check_length(experiment, text, length)


def check_suite(experiment: Experiment, suite: Suite, problems: Sequence[Problem]) -> None:
    """Raise ValueError for prompts that the model cannot read, alone or with their responses."""
    longest = longest_prompt(experiment.tokenizer, problems, experiment.model.vocabulary)
    tokens = (suite.sampling or experiment.sampling).max_tokens
    text = f"suite {suite.name}: the longest prompt, {longest} tokens, with a response of max_tokens={tokens}"
    _check_length(experiment, text, longest + tokens)


def _check_length(experiment: Experiment, text: str, length: int) -> None:
    folder = model_folder(experiment.start)
    limit = readable_positions(folder) if folder else None
    if folder and limit is not None and length > limit:
        remedy = "use shorter texts"
        if experiment.model.rope_scaling is None:
            remedy += f", or stretch its positions there by {yarn_fields(folder, math.ceil(length / limit), limit)}"
        raise ValueError(
            f"{text} has {length} positions; the model in {folder} reads {limit}, as its config.json says "
            f"(max_position_embeddings, rope_scaling): {remedy}"
        )
