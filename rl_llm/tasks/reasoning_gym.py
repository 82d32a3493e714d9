"""Procedural data sets of the `reasoning-gym` package as tasks.

Before a data set yields its first problem, its problems must repeat in a new process: not all of them do.
"""

import contextlib
import difflib
import hashlib
import io
import itertools
import json
import multiprocessing
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

from rl_llm.problem import Problem, Split, problem_id, split_of
from rl_llm.tasks.answers import last_answer_tag, written_as_asked
from rl_llm.tasks.reasoning_gym_scorers import SCORERS, evaluating_call

SAMPLE = 64  # a data set may fail on only a few percent of its problems, as "codeio" does
PATIENCE = 500  # consecutive draws without a new problem before a split counts as used up
BLOCK_SIZE = 500  # some data sets build an index of their size, so many draws use many blocks


@dataclass(frozen=True)
class ReasoningGym:
    """One data set of reasoning-gym, with its configuration as ((field, value), ...). Needs the extra `tasks`.

    Seed and size are arguments of `problems`, not part of the configuration.
    """

    dataset: str = "chain_sum"
    config: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        for key, _ in self.config:
            if key in ("seed", "size"):
                raise ValueError(f"config sets {key!r}, which problems(split, count, seed) decides; leave it out")
        try:
            hash(self.config)
        except TypeError as error:
            raise ValueError(f"config={self.config!r} holds a mutable value; write lists as tuples") from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A grading worker unpickles the task. The import takes 2 s, which must not count towards the time limit of its
        # first response.
        self.__dict__.update(state)
        import_reasoning_gym()

    @property
    def name(self) -> str:
        return f"reasoning_gym/{self.dataset}"

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Draw `count` distinct problems of a split.

        Raises ValueError if the data set does not repeat or has too few distinct problems.
        """
        _check_repeats(self)
        problems = _draw(self, split, count, seed)
        if len(problems) < count:
            raise ValueError(
                f"{self.name}: {count} {split} problems asked for, but after {len(problems)}, {PATIENCE} draws "
                "in a row gave no new one; ask for fewer, or widen its config"
            )
        return problems

    def verify(self, problem: Problem, response: str) -> float:
        """Return the data set's score, 0.0 to 1.0, of the last `<answer>`, or else of the whole response.

        Scorers that would run a response as code are replaced (`reasoning_gym_scorers`).
        """
        answer = last_answer_tag(response)
        entry = {"question": problem.prompt, "answer": problem.answer, "metadata": problem.metadata["entry"]}
        given, dataset, scorer = response if answer is None else answer, _dataset(self), SCORERS.get(self.dataset)
        return float(dataset.score_answer(given, entry) if scorer is None else scorer(dataset, given, entry))

    def write_answer(self, problem: Problem, shown_prompt: str) -> str:
        """Write the answer as the text around the question asks; grids in a question may look like marks."""
        return written_as_asked(shown_prompt.replace(problem.prompt, ""), problem.answer)


def check_repeats(task: ReasoningGym, problems: Sequence[Problem]) -> None:
    """Refuse a data set that draws other problems in a new process, judged by a sample of its problems.

    Raises ValueError naming the data set and the problem.
    """
    seeds, indices = ([problem.metadata[name] for problem in problems] for name in ("seed", "index"))
    # The order of a set of strings differs between processes, not within one.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        again = [*process.map(partial(_problem, task), seeds, indices, chunksize=SAMPLE)]
    for problem, other in zip(problems, again, strict=True):
        if (other.prompt, other.answer) != (problem.prompt, problem.answer):
            place = "its problem {index} under seed {seed}".format_map(problem.metadata)
            raise _refusal(task, f"{place} does not repeat in another process")


@lru_cache(maxsize=64)
def _check_repeats(task: ReasoningGym) -> None:
    # Once per task and process: the verdict depends on the task alone.
    check_repeats(task, _draw(task, None, SAMPLE, seed=0))


def _refusal(task: ReasoningGym, reason: str) -> ValueError:
    return ValueError(f"reasoning-gym data set {task.dataset!r} is refused: {reason}; choose another data set")


def _draw(task: ReasoningGym, split: Split | None, count: int, seed: int) -> list[Problem]:
    """Draw up to `count` distinct problems of a split (None: of any)."""
    found: dict[str, Problem] = {}
    last_new = 0
    for index in itertools.count():
        if len(found) == count or index - last_new > PATIENCE:
            break
        problem = _problem(task, seed, index)
        if problem.prompt not in found and split in (None, split_of(problem.prompt)):
            found[problem.prompt] = problem
            last_new = index
    return list(found.values())


def _problem(task: ReasoningGym, seed: int, index: int) -> Problem:
    block, index_in_block = divmod(index, BLOCK_SIZE)
    dataset = _dataset(task, seed, block)
    with contextlib.redirect_stdout(io.StringIO()):  # some generators print
        entry = dataset[index_in_block]
    prompt, answer = entry["question"], entry["answer"]
    if not isinstance(answer, str):
        raise _refusal(task, f"its problem {index} stores {answer!r} as the answer; expected a text")
    # Through JSON, so that a problem read from a log scores the same. The gate sees any loss.
    metadata = json.loads(json.dumps(entry["metadata"], default=str))
    return Problem(
        id=problem_id(task.name, prompt),
        prompt=prompt,
        answer=answer,
        metadata={"seed": seed, "index": index, "entry": metadata},
    )


@lru_cache(maxsize=8)
def _dataset(task: ReasoningGym, seed: int = 0, block: int = 0) -> Any:
    """Create a data set of BLOCK_SIZE lazy entries. Raises ValueError for an unknown name or configuration."""
    # reasoning-gym seeds entry i with seed + i: seeds 0 and 1 share all entries but one. Hashed seeds lie far apart.
    digest = hashlib.sha256(f"reasoning-gym {seed} {block}".encode()).digest()
    spread_seed = int.from_bytes(digest[:4], "big") >> 1
    factory = import_reasoning_gym()
    if task.dataset not in factory.DATASETS:
        near = difflib.get_close_matches(task.dataset, factory.DATASETS, n=3) or sorted(factory.DATASETS)
        raise ValueError(f"reasoning-gym has no data set {task.dataset!r}: did you mean {', '.join(near)}?")
    known = [field.name for field in fields(factory.DATASETS[task.dataset][1])]
    for key, _ in task.config:
        if key not in known:
            raise ValueError(f"{task.name} has no config field {key!r}; its fields are {', '.join(known)}")
    try:
        dataset = factory.create_dataset(task.dataset, seed=spread_seed, size=BLOCK_SIZE, **dict(task.config))
    except AssertionError as error:
        raise ValueError(f"{task.name} refuses config={task.config!r}: {error}") from error
    call = None if task.dataset in SCORERS else evaluating_call(dataset)
    if call is not None:
        raise _refusal(task, f"its scorer may run text of a response as code ({call}), and training finds that out")
    return dataset


def import_reasoning_gym() -> ModuleType:
    """Import the package. Raises ImportError naming the extra that has it."""
    try:
        with warnings.catch_warnings():
            # Compiling the dependency cellpylib warns about `is` with a literal.
            warnings.filterwarnings("ignore", '"is" with', SyntaxWarning)
            from reasoning_gym import factory  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("ReasoningGym needs the package reasoning-gym: pip install 'rl_llm[tasks]'") from error
    return factory
