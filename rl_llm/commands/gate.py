"""The gate of a task: its verifier must find the task's own answers right and nonsense wrong.

A verifier that rewards nonsense teaches nonsense, and one that cannot read the answers it asked for teaches nothing.
The gate grades, in the grading processes, responses that are known to be right or wrong.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import groupby

from rl_llm.experiment import Experiment, Suite
from rl_llm.parallel import population
from rl_llm.prepare import Problems, counts
from rl_llm.prng import Purpose, generator
from rl_llm.problem import Problem, Task
from rl_llm.rewards.grader import Grader
from rl_llm.rewards.worker import Grade
from rl_llm.rollout.text import encode_shown
from rl_llm.tasks.answers import written_as_asked
from rl_llm.tasks.datasets import is_sentence

PROBLEMS = 256  # of each split; a verifier may fail on only a few percent of them
SECONDS = 2.0  # after which no further problems are taken
FIRST, MOST = 4, 64  # problems that are taken in any case, one by one; most of a later round
STUCK = 3  # responses that hang or end their process, after which no further ones are graded
RIGHT, WRONG = 0.99, 0.1  # accuracy from which a response counts as right; largest mean accuracy of junk
EXAMPLES = 3  # failures that a report shows
WORDS = 6  # of a gold that is a sentence without a mark
SENTENCES = 0.01  # share of such golds that is normal
CODE = "__import__('os')._exit(3)"  # ends the process of a verifier that evaluates it
JUNK_RESPONSES = (
    " \n",
    CODE,
    "junk",
    "the quick brown fox jumps over the lazy dog",
    "I do not know, sorry.",
    "?!.,;:'\"()[]{}<>",
    "\N{SNOWMAN}\N{GREEK SMALL LETTER OMEGA}",
    "0" * 50,
    "<think>" * 20,
    "x " * 10_000,
)
_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")  # no command of LaTeX
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", re.ASCII)
SENTENCES_REMEDY = (
    "A response must repeat them letter by letter: put the answer behind #### or into \\boxed{}, or name the field "
    "that holds it alone (task.layout.answer)"
)

Write = Callable[[Problem], str]  # writes problem.answer as a response that the prompt asks for


@dataclass(frozen=True)
class Probe:
    """A response that is known to be right or wrong, with its grade."""

    problem: Problem
    response: str
    right: bool
    near: bool  # gold +- 1
    grade: Grade

    def __str__(self) -> str:
        kind, grade = "right" if self.right else "wrong", self.grade
        found = f"earns {grade.accuracy:g}" if grade.status == "ok" else f"ends in {grade.status}, {grade.message}"
        return (
            f"prompt {'...' + self.problem.prompt[-60:]!r}, gold {self.problem.answer[:60]!r}: the {kind} response "
            f"{self.response[:80]!r} {found}"
        )


@dataclass(frozen=True)
class GateReport:
    """Number of problems `checked` of those `given`, and the first failing probe of each problem that fails."""

    checked: int
    given: int
    failures: tuple[Probe, ...]

    @property
    def share(self) -> float:
        """Share of the checked problems that fail."""
        return len(self.failures) / max(self.checked, 1)

    @property
    def few(self) -> bool:
        """Whether too few problems were checked to judge the others."""
        return self.checked < min(self.given, MOST)

    @property
    def causes(self) -> str:
        """Likely causes, each with its remedy, if the failures show any."""
        broken = [
            f"{probe.grade.status}, {probe.grade.message}" for probe in self.failures if probe.grade.status != "ok"
        ]
        found = f"\nMend the verifier or the component of the reward: {broken[0]}." if broken else ""
        if any(CODE in probe.response and probe.grade.status == "crashed" for probe in self.failures):
            found += " It runs text of a response as code: read numbers and lists with ast.literal_eval or a parser."
        near = any(probe.near and probe.grade.status == "ok" for probe in self.failures)
        tolerance = "\nGold +- 1 is right, other wrong answers are not: narrow the verifier's tolerance."
        return found + tolerance * near

    def __str__(self) -> str:
        listed = ", such as" * bool(self.failures) + "".join(f"\n    {probe}" for probe in self.failures[:EXAMPLES])
        part = f"; checked {self.checked} of {self.given}" if self.checked < self.given else ""
        return f"{len(self.failures)} of {self.checked} problems fail ({self.share:.1%}{part}){listed}"


def pass_gate(experiment: Experiment, problems: Problems, seed: int, grader: Grader) -> str:
    """Check the answers of a run's problems before it starts; returns the problems that fail, if they are few.

    Members of a population pass once. Raises ValueError if splits share problems, or if more than
    `grading.failing_problems` of a sample fail (`check_answers`).
    """
    key = grader.key, experiment.tokenizer.fingerprint(), experiment.grading.failing_problems
    with population.shared(_gate(experiment, problems, seed, grader), key) as said:
        return said


@contextmanager
def _gate(experiment: Experiment, problems: Problems, seed: int, grader: Grader) -> Iterator[str]:
    name, allowed = experiment.task.name, experiment.grading.failing_problems
    first: dict[str, str] = {}
    for split in counts(experiment):
        for problem in problems[split]:
            if (other := first.setdefault(problem.prompt, split)) != split:
                raise ValueError(
                    f"task {name}: {problem.prompt[:200]!r} is in the splits {other} and {split}; accuracy on problems "
                    "of the training says nothing about new ones: give each problem to one split (problem.split_of; a "
                    "file: task.held_out=FILE or task.validation=FILE)"
                )
    report = check_answers(experiment, problems, seed, grader)
    if report.share > allowed:
        raise ValueError(
            f"task {name}: {report}{report.causes}\nA gold, written as the prompt asks, must be graded right; junk, "
            "code, the empty answer, 1/gold and gold +- 1 wrong. Make prompt and verifier agree: the tokenizer's "
            "system message, the task's marks, its verify. If `answer` ends no response, give the task a method "
            "write_answer(problem, shown_prompt) -> str. To accept this: --set grading.failing_problems="
            f"{math.ceil(100 * report.share) / 100}"
        )
    said = [f"task {name}: {report}"] if report.failures or report.few else []
    own = [problem for split in counts(experiment) for problem in problems[split]]
    suites = [(f"suite {suite.name}", problems[suite.key]) for suite in experiment.evaluation.suites]
    for owner, asked in [(f"task {name}", own), *suites]:
        found, many = sentence_golds(asked)
        said += [f"{owner}: {found}. {SENTENCES_REMEDY}"] if many else []
    for suite in experiment.evaluation.suites:
        report = check_suite_answers(experiment, suite, problems[suite.key], seed, grader)
        if report.share > allowed:
            raise ValueError(
                f"suite {suite.name}: {report}{report.causes}\nIts accuracy would say nothing. Make its prompt and the "
                "verifier of its task agree, or take it out of evaluation.suites. To accept this: --set "
                f"grading.failing_problems={math.ceil(100 * report.share) / 100}"
            )
        said += [f"suite {suite.name}: {report}"] if report.failures else []
    yield "\n".join(said)


def check_answers(
    experiment: Experiment, problems: Problems, seed: int, grader: Grader, seconds: float = SECONDS
) -> GateReport:
    """Probe task and reward with a sample of the problems of every split, in random order."""
    draw = generator(seed, Purpose.GATE)
    others = {"conversations", *(suite.key for suite in experiment.evaluation.suites)}
    graded = (found for name, found in problems.items() if name not in others)
    pools = [[problem for problem in found if "rewards" not in problem.metadata] for found in graded]
    sample = [pool[index] for pool in pools for index in draw.permutation(len(pool))[:PROBLEMS]]
    order = draw.permutation(len(sample))
    write = answer_writer(experiment, experiment.task)
    return check_task(grader, [sample[index] for index in order], write, seconds)


def check_suite_answers(
    experiment: Experiment, suite: Suite, problems: Sequence[Problem], seed: int, grader: Grader
) -> GateReport:
    """Probe a suite's verifier with a sample of its problems. An answer is boxed where the prompt asks for no form."""
    write = answer_writer(experiment, suite.task)
    write = boxed_if_bare(write) if "boxed" in getattr(suite.task, "marks", ()) else write
    order = generator(seed, Purpose.GATE).permutation(len(problems))[:PROBLEMS]
    return check_task(grader, [problems[index] for index in order], write)


def answer_writer(experiment: Experiment, task: Task) -> Write:
    """Return the function that writes the answer of a task's problem as the experiment's prompt asks for it."""
    write_answer = getattr(task, "write_answer", None)

    def write(problem: Problem) -> str:
        shown = shown_prompt(experiment, problem)
        return written_as_asked(shown, problem.answer) if write_answer is None else write_answer(problem, shown)

    return write


def sentence_golds(problems: Sequence[Problem]) -> tuple[str, bool]:
    """Number of a file's golds that are sentences without a mark, with an example, and whether they are many."""
    golds = [problem.answer for problem in problems if problem.metadata.get("solution") == ""]
    found = [gold for gold in golds if is_sentence(gold) or len(_WORD.findall(gold)) >= WORDS]
    example = f", such as {found[0][:80]!r}" if found else ""
    said = f"{len(found)} of {len(problems)} golds are sentences without a mark{example}"
    return said, len(found) > SENTENCES * len(problems)


def boxed_if_bare(write: Write) -> Write:
    """Return a function that puts answers into a box if `write` leaves them bare."""

    def write_boxed(problem: Problem) -> str:
        written = write(problem)
        return rf"\boxed{{{written}}}" if written == problem.answer else written

    return write_boxed


def shown_prompt(experiment: Experiment, problem: Problem) -> str:
    """All that the model is shown of a problem, such as a system message, as text."""
    tokenizer = experiment.tokenizer
    ids = encode_shown(tokenizer, problem)
    turns = groupby(ids, lambda token: token in tokenizer.stop_ids)  # `decode` ends where a turn does
    return "".join(tokenizer.decode(list(turn)) for is_stop, turn in turns if not is_stop)


def check_task(grader: Grader, problems: Sequence[Problem], write: Write, seconds: float = SECONDS) -> GateReport:
    """Probe verifier and reward with these problems, in order, until the seconds are over or STUCK probes hang.

    `grader` is running. A problem passes if its gold, written by `write`, is right, and junk, code, the empty answer
    and, for a gold that is a number n, 1/n and n +- 1 are wrong. A probe that cannot be graded fails. Partial credit
    for junk may average WRONG. Raises ValueError if `write` fails on a gold.
    """
    probes: list[Probe] = []
    checked, stuck, end = 0, 0, time.monotonic() + seconds
    while checked < len(problems) and stuck < STUCK and (checked < FIRST or time.monotonic() < end):
        part = range(checked, min(checked + (1 if checked < FIRST else min(checked, MOST)), len(problems)))
        asked = [(problems[place], *found) for place in part for found in _responses(problems[place], write, place)]
        step = 1 if checked < FIRST else len(asked)  # one by one at first: each that hangs takes the time limit
        while asked and stuck < STUCK:
            now, asked = asked[:step], asked[step:]
            grades = grader.grade([problem for problem, *_ in now], [response for _, response, *_ in now])
            probes += [Probe(*found, grade) for found, grade in zip(now, grades, strict=True)]
            stuck += sum(grade.status in ("timeout", "crashed") for grade in grades)
        checked = part.stop
    failures: dict[int, Probe] = {}
    for probe in sorted(probes, key=lambda probe: probe.near):  # the others, such as junk, say more
        if _fails(probe, probes):
            failures.setdefault(probe.problem.id, probe)
    return GateReport(checked, len(problems), tuple(failures.values()))


def _responses(problem: Problem, write: Write, place: int) -> Iterator[tuple[str, bool, bool]]:
    """Responses to a problem, whether they are right, and whether they are near to it."""
    if problem.answer.strip():
        try:
            right = write(problem)
        except Exception as error:
            raise ValueError(f"write_answer fails on the answer {problem.answer[:80]!r}: {error!r}") from error
        yield right, True, False
        yield "", False, False
        for answer in ("", CODE, *_neighbours(problem.answer)):
            with suppress(Exception):  # `write` may know only the task's own answers
                if (wrong := write(replace(problem, answer=answer))) != right:
                    yield wrong, False, answer not in ("", CODE) and "/" not in answer
    junk = JUNK_RESPONSES[place % len(JUNK_RESPONSES)]  # one for each problem: some verifiers are slow on it
    if not _same_answer(junk, problem.answer):
        yield junk, False, False


def _neighbours(gold: str) -> list[str]:
    """Wrong answers that a sloppy reader of numbers takes for the gold."""
    digits = gold.strip()
    if not _NUMBER.fullmatch(digits):
        return []
    number = Decimal(digits.replace(",", ""))
    whole = number == number.to_integral_value()
    near = [str(int(number) + by) if whole else str(number + by) for by in (1, -1)]
    return near if abs(number) == 1 else [f"1/{digits}", *near]


def _fails(probe: Probe, probes: Sequence[Probe]) -> bool:
    if probe.grade.status != "ok" or probe.right:
        return probe.grade.status != "ok" or probe.grade.accuracy < RIGHT
    if probe.grade.accuracy <= WRONG or probe.grade.accuracy >= RIGHT:
        return probe.grade.accuracy >= RIGHT
    if probe.response not in JUNK_RESPONSES:
        return False
    alike = [other.grade.accuracy for other in probes if other.response == probe.response]
    return sum(alike) / len(alike) > WRONG


def _same_answer(response: str, answer: str) -> bool:
    """Whether a junk response happens to be right, as "0000" is for the answer 0."""
    with suppress(ValueError):
        return float(response) == float(answer)
    return response.strip() == answer.strip()
