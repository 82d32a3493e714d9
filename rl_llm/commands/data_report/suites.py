"""Contamination of benchmarks by an experiment's training data."""

from collections.abc import Iterator, Sequence

from rl_llm.commands.data_report.biases import Check
from rl_llm.evaluation.contamination import contamination
from rl_llm.evaluation.presets import parse_suites
from rl_llm.evaluation.shared import learned_problems, learned_texts
from rl_llm.experiment import Experiment

SHOWN = 3  # problems that are quoted


def check_suites(experiment: Experiment, given: Sequence[str], seed: int) -> Iterator[tuple[Check, str]]:
    """Yield a check and a note for each suite, given as NAME=FILE. Raises ValueError or OSError."""
    suites = parse_suites(list(given))
    texts = learned_texts(experiment, learned_problems(experiment, seed))
    for suite in suites:
        problems = suite.ask()
        hits = contamination([problem.prompt for problem in problems], texts)
        share = f"{len(hits)} of {len(problems)} problems ({len(hits) / len(problems):.1%}) are in the training data"
        advice = f"leave these training texts out, or report {suite.name} without these problems" if hits else ""
        quoted = [
            f"  {problems[hit.problem].prompt[:120]!r}: {hit.words[:120]!r} in {texts[hit.text][:120]!r}"
            for hit in hits[:SHOWN]
        ]
        note = (
            "\n".join([f"{suite.name} in the training data (problem, shared words, training text):", *quoted])
            if hits
            else ""
        )
        yield Check(f"suite {suite.name}", share, advice), note
