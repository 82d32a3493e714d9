"""Defects of a task's problems, found without a model: guessable answers, duplicates, leaks, lengths.

A policy is rewarded for a guess without reasoning (arXiv 2508.08221, appendix B.2, removes most True/False questions
for this), and accuracy on problems that it met in training says nothing about new ones.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rl_llm.commands.data_report.duplicates import SHINGLE, SIMILAR, first_of_each, near_duplicates
from rl_llm.commands.gate import STUCK
from rl_llm.config.fields import Checked, PositiveShare
from rl_llm.problem import Problem
from rl_llm.rewards.grader import Grader
from rl_llm.rewards.worker import Grade
from rl_llm.tasks.answers import ANSWER_CLOSING, ANSWER_OPENING
from rl_llm.tasks.answers.numbers import read_number
from rl_llm.tasks.datasets import normalize_text

REPEATED = 0.01  # share of duplicates, exact or near, that is tolerated
COINCIDENCE = 0.10  # tolerated excess over chance of prompts that contain their answer
TILTED = 0.90  # share of problems at one difficulty beyond which a curriculum has no choice
FREQUENT = 5  # most frequent answers that are tried on all problems
PASSES = 10  # passes over the problems beyond which a run can memorise them
ASKED = 200  # problems on which the verifier grades each frequent answer

LETTER = "an option's letter"
GUESSABLE = {
    "True/False": frozenset(("true", "false")),
    "Yes/No": frozenset(("yes", "no")),
    LETTER: frozenset("abcdefgh"),
}
_LATEX = re.compile(r"\\(?:text[a-z]*|mathrm|mbox|boxed)\s*\{|[$}]")  # wrappers of words
_LABELLED = re.compile(r"\(?([a-h])\)[\s\\]+(?!.*\b[a-h]\))", re.DOTALL)  # "B) 12", but no answer in parts a) and b)
_GIVEN = r"(?:answer\s*(?:is|:|=)|####|\\boxed\s*\{|<answer>)\s*"


@dataclass(frozen=True)
class Limits(Checked):
    """Largest shares of problems answered by a `guess` (GUESSABLE) and of problems with the same `answer`."""

    guess: PositiveShare = 0.10
    answer: PositiveShare = 0.30


@dataclass(frozen=True)
class Check:
    """One check of the problems: the finding, and advice ("" if all is well)."""

    name: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Survey:
    """All checks, the problems to remove (place -> first reason), and `notes` too long for a table."""

    checks: tuple[Check, ...]
    removed: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def survey(
    grader: Grader,
    problems: Sequence[Problem],
    others: Mapping[str, Sequence[Problem]],
    lengths: Sequence[int],
    longest: int,
    limits: Limits,
    prompts: int = 0,
) -> Survey:
    """Check the problems of one split against themselves and against the `others`, by split.

    `grader` runs with the task's verifier.

    `lengths` are the token counts of their prompts, empty if unknown; at most `longest` is allowed. A whole run asks
    `prompts` prompts; 0 if unknown. Raises ValueError if there are no problems.
    """
    if not problems:
        raise ValueError("the task has no problems to check")
    removed: dict[int, str] = {}
    checks = [
        *([_length(lengths, longest, removed)] if lengths else []),
        _given_away(problems, removed),
        *_duplicates(problems, removed),
        *_leaks(problems, others, removed),
        _guesses(problems, limits),
        _balance(grader, problems, limits),
        _coincidence(problems),
        _difficulty(problems),
        *([_number(problems, prompts)] if prompts else []),
    ]
    _thin(problems, limits, removed)
    return Survey(tuple(checks), removed)


def guess_of(answer: str, prompt: str = "") -> str | None:
    """Kind of an answer that a guess gets right every few times; None for any other answer.

    Options are A to D, and beyond D if the prompt lists all letters up to it.
    """
    text = _LATEX.sub("", answer).strip().casefold().removeprefix("option")
    labelled = _LABELLED.match(text)
    text = labelled[1] if labelled else re.sub(r"[\s.()\[\]*]", "", text)
    kind = next((kind for kind, answers in GUESSABLE.items() if text in answers), None)
    if kind == LETTER and text > "d":
        shown = re.findall(r"\b([a-h])\s*[).:]", prompt.casefold())
        return kind if {chr(letter) for letter in range(ord("a"), ord(text) + 1)} <= set(shown) else None
    return kind


def answer_key(answer: str) -> Hashable:
    """Key that spellings of one answer share: its number ("$1,000.", "1000.0"), or else its text."""
    number = read_number(answer)
    return answer.strip().rstrip(".").casefold() if number is None else number.value


def _length(lengths: Sequence[int], longest: int, removed: dict[int, str]) -> Check:
    low, middle, high = np.quantile(lengths, (0.0, 0.5, 1.0)).astype(int)
    over = [place for place, length in enumerate(lengths) if length > longest]
    removed.update(dict.fromkeys(over, "longer than max_prompt_tokens"))
    found = f"{low} to {high} tokens, half have {middle} or fewer; {longest} are allowed"
    advice = f"{len(over)} are too long: remove them or raise max_prompt_tokens" if over else ""
    return Check("length of prompts", found, advice)


def _given_away(problems: Sequence[Problem], removed: dict[int, str]) -> Check:
    places = [place for place, problem in enumerate(problems) if _says_answer(problem.prompt, problem.answer.strip())]
    for place in places:
        removed.setdefault(place, "the prompt gives the answer away")
    advice = "the prompt states its answer: remove these" if places else ""
    return Check("answers given away", f"{len(places)} prompts state their answer", advice)


def _says_answer(prompt: str, answer: str) -> bool:
    # "Answer: A) ..." lists options; the 3 of 3.14, of 3,000 and of 3/4 is not the number 3
    end = r"(?!\w|\s*[).:])" if len(answer) == 1 and answer.isalpha() else r"(?!\w|[.,/]\d)"
    return bool(answer) and re.search(_GIVEN + re.escape(answer) + end, prompt, re.IGNORECASE) is not None


def _duplicates(problems: Sequence[Problem], removed: dict[int, str]) -> list[Check]:
    texts = [normalize_text(problem.prompt) for problem in problems]
    first = first_of_each(texts)
    exact = [place for place, earlier in enumerate(first) if earlier != place]
    answers = [answer_key(problem.answer) for problem in problems]
    disputed = {first[place] for place in exact if answers[place] != answers[first[place]]}
    differ = [place for place in range(len(problems)) if first[place] in disputed]
    near: dict[int, int] = {}
    for earlier, later in sorted(near_duplicates(texts)):
        if earlier not in near:
            near.setdefault(later, earlier)
    reasons = ((differ, "one question with different answers"), (exact, "a duplicate"), (near, "a near-duplicate"))
    for places, reason in reasons:
        for place in places:
            removed.setdefault(place, reason)
    advice = "a repeated problem counts twice: keep one of each"
    same = f"{len(exact)} repeat another but for case and spacing; {len(differ)} have different answers to one question"
    like = f"{len(near)} share {SIMILAR:.0%} of their {SHINGLE}-word shingles, and all numbers, with another"
    return [
        Check("duplicates", same, advice if differ or len(exact) > REPEATED * len(problems) else ""),
        Check("near-duplicates", like, advice if len(near) > REPEATED * len(problems) else ""),
    ]


def _leaks(
    problems: Sequence[Problem], others: Mapping[str, Sequence[Problem]], removed: dict[int, str]
) -> list[Check]:
    checks = []
    texts = [normalize_text(problem.prompt) for problem in problems]
    for split, found in others.items():
        theirs = [normalize_text(problem.prompt) for problem in found]
        known = set(theirs)
        same = {place for place, text in enumerate(texts) if text in known}
        # The other split comes first: a near-duplicate is paired with the first of its kind.
        pairs = near_duplicates(theirs + texts)
        near = {later - len(theirs) for earlier, later in pairs if earlier < len(theirs) <= later} - same
        for place in sorted(same | near):
            removed.setdefault(place, f"also in {split}")
        advice = f"a policy could memorise {split}: remove these" if same | near else ""
        checks.append(Check(f"leaks, {split}", f"{len(same)} are also there, {len(near)} nearly", advice))
    return checks


def _guesses(problems: Sequence[Problem], limits: Limits) -> Check:
    counts = Counter(kind for problem in problems if (kind := guess_of(problem.answer, problem.prompt)) is not None)
    share = counts.total() / len(problems)
    found = f"{share:.1%} are answered by a guess" + "".join(f", {count} by {kind}" for kind, count in counts.items())
    advice = f"wrong reasoning is often rewarded: keep at most {limits.guess:.0%}, or ask for the value itself"
    return Check("answers by a guess", found, advice if share > limits.guess else "")


def _balance(grader: Grader, problems: Sequence[Problem], limits: Limits) -> Check:
    answers = [answer_key(problem.answer) for problem in problems]
    counts = Counter(answers)
    shares = np.array(list(counts.values())) / len(problems)
    bits = max(0.0, float(-(shares * np.log2(shares)).sum()))
    frequent = [problems[answers.index(answer)].answer.strip() for answer, _ in counts.most_common(FREQUENT)]
    earned = [_earned(grader, problems, answer) for answer in frequent]
    share, earns = float(shares.max()), max(earned)
    found = (
        f"{len(counts)} different ones, {bits:.2f} bits of entropy; the most frequent, {frequent[0][:40]!r}, answers "
        f"{share:.1%}; always answering {frequent[earned.index(earns)][:40]!r} earns {earns:.1%}"
    )
    if share > limits.answer:
        return Check("balance of answers", found, f"one answer pays unread: keep at most {limits.answer:.0%} of each")
    advice = "one answer pays unread because the verifier accepts it for others: make it stricter"
    return Check("balance of answers", found, advice if earns > limits.answer else "")


def _thin(problems: Sequence[Problem], limits: Limits, removed: dict[int, str]) -> None:
    """Remove problems beyond the limits, the last ones first, until the rest is within both."""
    kinds = [guess_of(problem.answer, problem.prompt) for problem in problems]
    answers = [answer_key(problem.answer) for problem in problems]
    before = -1
    while len(removed) > before:
        before = len(removed)
        left = [place for place in range(len(problems)) if place not in removed]
        guessed = [place for place in left if kinds[place] is not None]
        allowed = len(guessed)
        if len(guessed) > limits.guess * len(left):  # of g guesses and n others, g <= share * (g + n)
            allowed = int(limits.guess / (1 - limits.guess) * (len(left) - len(guessed)))
        for place in guessed[allowed:]:
            removed[place] = f"answered by a guess, beyond {limits.guess:.0%}"
        left = [place for place in left if place not in removed]
        cap, kept = _cap([*Counter(answers[place] for place in left).values()], limits.answer), Counter[object]()
        for place in left:
            kept[answers[place]] += 1
            if kept[answers[place]] > cap:
                removed[place] = f"an answer beyond {limits.answer:.0%}"


def _cap(counts: Sequence[int], share: float) -> int:
    """Largest count per answer that keeps each answer within `share` of all that is kept.

    With too few answers for that, the limit is an equal part for each.
    """
    share, kept = max(share, 1 / max(len(counts), 1)), np.array(counts)
    caps = range(1, max(counts, default=0) + 1)
    return bisect_left(caps, True, key=lambda cap: bool(cap > share * np.minimum(kept, cap).sum() + 1e-9))


def _earned(grader: Grader, problems: Sequence[Problem], answer: str) -> float:
    """Mean accuracy of one answer to the first ASKED problems; it shows a lenient verifier.

    An answer that cannot be graded is not right. After STUCK that hang or end their process no further ones are asked.
    """
    asked, grades = problems[:ASKED], list[Grade]()
    response = f"{ANSWER_OPENING}{answer}{ANSWER_CLOSING}"
    while len(grades) < len(asked) and sum(grade.status in ("timeout", "crashed") for grade in grades) < STUCK:
        part = asked[len(grades) : 2 * len(grades) + 1]  # one by one at first: each that hangs takes the time limit
        grades += grader.grade(part, [response] * len(part))
    return float(np.mean([grade.accuracy for grade in grades]))


def _coincidence(problems: Sequence[Problem]) -> Check:
    """Compare how often prompts contain their own answer and another problem's, by a fixed shuffle."""
    words = [set(re.findall(r"\w+", problem.prompt.casefold())) for problem in problems]
    answers = [set(re.findall(r"\w+", problem.answer.casefold())) for problem in problems]
    others = np.random.default_rng(0).permutation(len(problems))

    def contained(places: Sequence[int]) -> float:
        pairs = zip(places, words, strict=True)
        return float(np.mean([bool(answers[place]) and answers[place] <= prompt for place, prompt in pairs]))

    own, chance = contained(range(len(problems))), contained(others.tolist())
    error = np.sqrt((own * (1 - own) + chance * (1 - chance)) / len(problems))
    found = f"{own:.1%} of prompts contain their answer, {chance:.1%} another problem's"
    advice = "the answer can be picked from the prompt: ask for something that is not in it, or list no options"
    return Check("answers within prompts", found, advice if own - chance > max(COINCIDENCE, 3 * error) else "")


def _difficulty(problems: Sequence[Problem]) -> Check:
    counts = Counter(problem.difficulty for problem in problems)
    if len(counts) == 1:
        return Check("difficulty", "the problems have none, or all the same")
    low, middle, high = np.quantile([problem.difficulty for problem in problems], (0.0, 0.5, 1.0))
    level, count = counts.most_common(1)[0]
    found = f"{low:g} to {high:g}, half are at {middle:g} or below; {count / len(problems):.0%} are at {level:g}"
    advice = "nearly all are equally hard: Curriculum.difficulty could hardly act"
    return Check("difficulty", found, advice if count > TILTED * len(problems) else "")


def _number(problems: Sequence[Problem], prompts: int) -> Check:
    found = f"{len(problems)}; the {prompts} prompts of a run ask each {prompts / len(problems):.1f} times"
    advice = "a run can memorise them: train on more (train_problems), or for fewer steps"
    return Check("number of problems", found, advice if prompts > PASSES * len(problems) else "")
