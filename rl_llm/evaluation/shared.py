"""Problems of suites that a run learns from: a note for the user, before accuracy on them is believed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_llm.evaluation.contamination import SHORTEST, contamination, words_of
from rl_llm.experiment import Experiment
from rl_llm.experiment.suite import Suite
from rl_llm.problem import Problem
from rl_llm.runs.load import RecordError, recorded_experiment
from rl_llm.tasks.conversations import read_conversations
from rl_llm.tasks.tables import read_files, rows_of

WHOLE = 10**9  # words in a row: problems must stand whole in a text


def learned_problems(experiment: Experiment, seed: int) -> dict[str, Sequence[Problem]]:
    """Read the problems that a run learns from, by kind: "train", "stored" and "conversations".

    Raises ValueError or OSError.
    """
    found: dict[str, Sequence[Problem]] = {}
    if _learns_task(experiment):
        found["train"] = experiment.task.problems("train", experiment.train_problems, seed)
    if experiment.responses is not None:
        found["stored"] = experiment.responses.problems(experiment.responses_per_prompt)
    file = experiment.warm_start and experiment.warm_start.demonstrations
    if file:
        source = file.path, file.data_dir, experiment.tokenizer, file.row_tokens
        found["conversations"] = read_conversations(*source)
    return found


def learned_texts(experiment: Experiment, problems: Mapping[str, Sequence[Problem]]) -> list[str]:
    """Texts that a run learns from: problems and solutions, stored responses, conversations, those of its `start`.

    `problems` are the run's, by kind. Raises ValueError or OSError if those of a start cannot be read.
    """
    texts = []
    for problem in problems.get("train", ()) if _learns_task(experiment) else ():
        texts += [problem.prompt, *([str(problem.metadata["solution"])] if problem.metadata.get("solution") else [])]
    for problem in problems.get("stored", ()):
        texts += [problem.prompt, *problem.metadata["responses"]]
    for problem in problems.get("conversations", ()):
        said: dict[str, Any] = json.loads(problem.prompt)
        texts += [message["content"] for message in said.get("messages", ())]
        texts += [said[name] for name in ("prompt", "response") if name in said]
    if experiment.start and (Path(experiment.start) / "experiment.json").is_file():
        try:
            other, record = recorded_experiment(experiment.start)
        except RecordError as error:
            raise ValueError(str(error)) from error
        texts += learned_texts(other, learned_problems(other, int(record["seed"])))
    return texts


def shared_problems(
    experiment: Experiment, suites: Sequence[Suite], problems: Mapping[str, Sequence[Problem]]
) -> Iterator[str]:
    """Name the suites with problems that a run learns from. `problems` are a run's, by kind and by suite.

    Capitals and spaces do not make another problem, nor does a text around a problem of at least 8 words. Passages
    that occur in both: `rl-llm data-report`.
    """
    if not suites:
        return
    try:
        texts = learned_texts(experiment, problems)
    except (ValueError, OSError) as error:
        yield f"the training data of start={experiment.start} cannot be searched for problems of the suites: {error}"
        return
    plain = set(map(_plain, texts))
    for suite in suites:
        asked = [problem.prompt for problem in problems[suite.key]]
        long = {place: text for place, text in enumerate(asked) if len(words_of(text)) >= SHORTEST}
        inside = {list(long)[hit.problem] for hit in contamination([*long.values()], texts, WHOLE)}
        if shared := [text for place, text in enumerate(asked) if place in inside or _plain(text) in plain]:
            yield (
                f"suite {suite.name}: the run learns from {len(shared)} of its {len(asked)} problems, the first is "
                f"{shared[0][:60]!r}: accuracy on them says nothing about new ones"
            )


def lost_rows(suite: Suite, problems: Sequence[Problem]) -> str | None:
    """A note if a suite's file has more rows than problems."""
    path = getattr(suite.task, "path", None)
    if path is None or suite.problems is not None:
        return None
    rows = sum(1 for _ in rows_of(read_files(path)))
    if rows == len(problems):
        return None
    return (
        f"suite {suite.name}: the {rows} rows of {path} are {len(problems)} problems, because a repeated question "
        "counts once, and one with several answers is left out. Published numbers may count every row"
    )


def _learns_task(experiment: Experiment) -> bool:
    """Whether a run learns from problems of its task: by sampling responses, or from the task's demonstrations."""
    demonstrated = experiment.warm_start is not None and experiment.warm_start.demonstrations is None
    return experiment.responses is None or demonstrated or experiment.mixture is not None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
