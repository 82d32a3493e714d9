"""Comparison of two evaluations on the problems that both have."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl_llm.evaluation.statistics import MeanEstimate, bounded_mean, paired_difference

RESULT, SAMPLES = "evaluation.json", "samples.jsonl"
MUST_AGREE = ("sampling",)  # of a suite; what else differs is noted
NOTED = ("prompt", "samples", "seed", "split")


class CompareError(Exception):
    """Two evaluations cannot be compared, or one cannot be read. The message names it and the way out."""


@dataclass(frozen=True)
class Answered:
    """A problem of an evaluation: its text, its gold answer and the mean grade of its samples."""

    prompt: str
    gold: str
    grade: float


@dataclass(frozen=True)
class ReadEvaluation:
    """An evaluation that was read: of each suite its part of evaluation.json, and its problems by id."""

    name: str
    suites: Mapping[str, Mapping[str, Any]]
    problems: Mapping[str, Mapping[int, Answered]]


@dataclass(frozen=True)
class Comparison:
    """avg@k of two evaluations on the problems of a suite that both have.

    `difference` is second - first, paired by problem, and `p_value` of a sign-flip test. `better`, `worse` and `equal`
    count problems as the second sees them. `only_first` and `only_second` are the prompts of other problems by id.
    """

    suite: str
    first: MeanEstimate
    second: MeanEstimate
    difference: MeanEstimate
    p_value: float
    better: int
    worse: int
    equal: int
    only_first: Mapping[int, str]
    only_second: Mapping[int, str]
    notes: tuple[str, ...]


def read_evaluation(path: Path) -> ReadEvaluation:
    """Read the folder of `rl-llm evaluate --out`, or one of its files. Raises CompareError naming file and line."""
    folder = path.parent if path.is_file() else path
    for name in (RESULT, SAMPLES):
        if not (folder / name).is_file():
            raise CompareError(f"{path} is not an evaluation: {folder / name} is missing. {_remedy(folder)}")
    try:
        suites = json.loads((folder / RESULT).read_bytes())["suites"]
        expected = {name: suite["problems"] * suite["samples"] for name, suite in suites.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CompareError(f"{folder / RESULT} is damaged: {error!r}; evaluate again") from error
    grades: dict[str, dict[int, list[float]]] = {name: {} for name in suites}
    texts: dict[int, tuple[str, str]] = {}
    with (folder / SAMPLES).open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, start=1):
            try:
                line = json.loads(text)
                grades[line["suite"]].setdefault(line["problem"], []).append(line["grade"] or 0.0)
                texts[line["problem"]] = _text(line["prompt"]), line["gold"]
            except (ValueError, KeyError, TypeError) as error:
                raise CompareError(
                    f"{folder / SAMPLES}, line {number} is damaged: {error!r}; evaluate again"
                ) from error
    for name, count in expected.items():
        found = sum(map(len, grades[name].values()))
        if found != count:
            raise CompareError(
                f"{folder / SAMPLES} has {found} samples of {name}, and {RESULT} says {count}: lines were lost or "
                "added; evaluate again"
            )
    problems = {
        name: {problem: Answered(*texts[problem], float(np.mean(found))) for problem, found in of.items()}
        for name, of in grades.items()
    }
    return ReadEvaluation(str(path), suites, problems)


def _remedy(folder: Path) -> str:
    """The command that makes an evaluation, in a new folder if `folder` belongs to something else."""
    if not folder.exists():
        return f"Make one: rl-llm evaluate ... --out {folder}"
    kinds = {"experiment.json": ("a run", str(folder)), "config.json": ("a model", f"{folder} --suite NAME=FILE")}
    kind, subject = next(
        (known for name, known in kinds.items() if (folder / name).exists()), ("another folder", "...")
    )
    return f"It is {kind}: evaluate it into a new folder, rl-llm evaluate {subject} --out NEW, and compare NEW"


def compare(first: ReadEvaluation, second: ReadEvaluation) -> list[Comparison]:
    """Compare two evaluations suite by suite. Raises CompareError for other suites or another sampling, by name."""
    lacking = [
        f"{one.name} has no suite {name}, which {other.name} has"
        for one, other in ((first, second), (second, first))
        for name in other.suites
        if name not in one.suites
    ]
    if lacking:
        raise CompareError(f"{'; '.join(lacking)}: evaluate both on the same suites (--suite NAME=FILE)")
    return [_compare_suite(name, first, second) for name in first.suites]


def _compare_suite(name: str, first: ReadEvaluation, second: ReadEvaluation) -> Comparison:
    described = first.suites[name], second.suites[name]
    for field in MUST_AGREE:
        if wrong := _differences(field, described[0].get(field), described[1].get(field)):
            raise CompareError(
                f"suite {name} was sampled in different ways, {first.name} and {second.name}: {'; '.join(wrong)}. "
                "Evaluate one of them again with the sampling of the other (--temperature, --top-p, --max-tokens)"
            )
    ours, theirs = first.problems[name], second.problems[name]
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise CompareError(f"suite {name}: {first.name} and {second.name} have no problem in common; use the same file")
    regraded = [problem for problem in shared if ours[problem].gold != theirs[problem].gold]
    if regraded:
        one = regraded[0]
        raise CompareError(
            f"suite {name}: {len(regraded)} problems have other gold answers in {second.name}, such as {one}: "
            f"{ours[one].gold!r} and {theirs[one].gold!r}. Evaluate both with the same file"
        )
    before = np.array([ours[problem].grade for problem in shared])
    after = np.array([theirs[problem].grade for problem in shared])
    difference, p_value = paired_difference(before, after)
    return Comparison(
        name,
        bounded_mean(before),
        bounded_mean(after),
        difference,
        p_value,
        int((after > before).sum()),
        int((after < before).sum()),
        int((after == before).sum()),
        {problem: ours[problem].prompt for problem in sorted(ours.keys() - theirs.keys())},
        {problem: theirs[problem].prompt for problem in sorted(theirs.keys() - ours.keys())},
        tuple(
            note for field in NOTED for note in _differences(field, described[0].get(field), described[1].get(field))
        ),
    )


def _differences(field: str, one: Any, other: Any) -> list[str]:
    """Sentences on what differs between two JSON values."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = dict.fromkeys((*one, *other))
        return [text for name in names for text in _differences(f"{field}.{name}", one.get(name), other.get(name))]
    return [] if one == other else [f"{field} is {one!r} and {other!r}"]


def _text(prompt: Any) -> str:
    """A prompt as a text; of several messages the last one."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
