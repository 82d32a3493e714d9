"""What is wrong with a task's problems, found without a model: answers that can be guessed, duplicates, leaks, lengths.

What a policy can guess it is rewarded for without reasoning (arXiv 2508.08221, appendix B.2, removes most questions
that are answered by True or False for this), and what it has met in training says nothing about others.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rl_llm.problem import Problem, Task
from rl_llm.tasks.answer import ANSWER_CLOSING, ANSWER_OPENING
from rl_llm.tasks.datasets import normalize
from rl_llm.tasks.duplicates import SHINGLE, SIMILAR, first_of_each, near_duplicates, plain

REPEATED = 0.01  # of the problems may be duplicates, exact or near ones, before they weigh
COINCIDENCE = 0.10  # of prompts more than by chance that have their answer in them
TILTED = 0.90  # of the problems at one level of difficulty leave no choice of another
FREQUENT = 10  # answers that are given to all problems, the most frequent ones, to see what each of them earns
PASSES = 10  # over the problems: a run that asks each more often than this can learn them by heart
ASKED = 1000  # problems on which the verifier is asked about each of these

LETTER = "an option's letter"
KINDS = {
    "True/False": frozenset(("true", "false")),
    "Yes/No": frozenset(("yes", "no")),
    LETTER: frozenset("abcdefgh"),
}
_LATEX = re.compile(r"\\(?:text[a-z]*|mathrm|mbox|boxed)\s*\{|[$}]")  # what wraps words
_LABELLED = re.compile(r"\(?([a-h])\)[\s\\]+(?!.*\b[a-h]\))", re.DOTALL)  # "B) 12", but no answer in parts a) and b)
_GIVEN = r"(?:answer\s*(?:is|:|=)|####|\\boxed\s*\{|<answer>)\s*"


@dataclass(frozen=True)
class Limits:
    """Shares of the problems: of those answered by a `guess` (KINDS) and of those with one and the same `answer`."""

    guess: float = 0.10
    answer: float = 0.30

    def __post_init__(self) -> None:
        for name in ("guess", "answer"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: a share above 0 and up to 1 of the problems")


@dataclass(frozen=True)
class Check:
    """One look at the problems: what was found, and what to do about it, or "" where all is well."""

    name: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Survey:
    """All checks, and the problems to be left out: their places, each with the reason that was met first."""

    checks: tuple[Check, ...]
    removed: Mapping[int, str] = field(default_factory=dict)


def survey(
    task: Task,
    problems: Sequence[Problem],
    others: Mapping[str, Sequence[Problem]],
    lengths: Sequence[int],
    longest: int,
    limits: Limits,
    prompts: int = 0,
) -> Survey:
    """Check the problems of one split of a task against themselves and against the `others`, by split. `lengths` are
    the tokens of their prompts, of which `longest` are allowed; all steps of a run together ask for as many `prompts`,
    0 where that is not known. Raises ValueError where there are no problems.
    """
    if not problems:
        raise ValueError(f"the task {task.name} has no problems to look at")
    removed: dict[int, str] = {}
    checks = [
        _length(lengths, longest, removed),
        _given_away(problems, removed),
        *_duplicates(problems, removed),
        *_leaks(problems, others, removed),
        _guesses(problems, limits),
        _balance(task, problems, limits),
        _coincidence(problems),
        _difficulty(problems),
        *([_number(problems, prompts)] if prompts else []),
    ]
    _thin(problems, limits, removed)
    return Survey(tuple(checks), removed)


def guess_of(answer: str, prompt: str = "") -> str | None:
    """The kind of answer that is right by a guess as often as not, or once in a few times. Options are A to D, and
    more where the prompt shows all up to them.
    """
    text = _LATEX.sub("", answer).strip().casefold().removeprefix("option")
    labelled = _LABELLED.match(text)
    text = labelled[1] if labelled else re.sub(r"[\s.()\[\]*]", "", text)
    kind = next((kind for kind, answers in KINDS.items() if text in answers), None)
    if kind == LETTER and text > "d":
        shown = re.findall(r"\b([a-h])\s*[).:]", prompt.casefold())
        return kind if {chr(letter) for letter in range(ord("a"), ord(text) + 1)} <= set(shown) else None
    return kind


def _length(lengths: Sequence[int], longest: int, removed: dict[int, str]) -> Check:
    low, middle, high = np.quantile(lengths, (0.0, 0.5, 1.0)).astype(int)
    found = f"{low} to {high} tokens, half have {middle} or fewer; {longest} are allowed"
    over = [place for place, length in enumerate(lengths) if length > longest]
    removed.update(dict.fromkeys(over, "longer than max_prompt_tokens"))
    if over:
        return Check("length of prompts", found, f"{len(over)} are too long: leave them out or raise max_prompt_tokens")
    return Check("length of prompts", found)


def _given_away(problems: Sequence[Problem], removed: dict[int, str]) -> Check:
    places = [place for place, problem in enumerate(problems) if _says_answer(problem.prompt, problem.answer.strip())]
    for place in places:
        removed.setdefault(place, "the prompt gives the answer away")
    advice = "what is asked stands in the prompt: leave these out" if places else ""
    return Check("answers given away", f"{len(places)} prompts say their answer", advice)


def _says_answer(prompt: str, answer: str) -> bool:
    # "Answer: A) ..." lists options; the 3 of 3.14, of 3,000 and of 3/4 is not the number 3
    end = r"(?!\w|\s*[).:])" if len(answer) == 1 and answer.isalpha() else r"(?!\w|[.,/]\d)"
    return bool(answer) and re.search(_GIVEN + re.escape(answer) + end, prompt, re.IGNORECASE) is not None


def _duplicates(problems: Sequence[Problem], removed: dict[int, str]) -> list[Check]:
    texts = [plain(problem.prompt) for problem in problems]
    first = first_of_each(texts)
    exact = [place for place, earlier in enumerate(first) if earlier != place]
    answers = [normalize(problem.answer) for problem in problems]
    disputed = {first[place] for place in exact if answers[place] != answers[first[place]]}
    differ = [place for place in range(len(problems)) if first[place] in disputed]
    near: dict[int, int] = {}
    for earlier, later in sorted(near_duplicates(texts)):
        if earlier not in near:
            near.setdefault(later, earlier)
    for places, reason in (
        (differ, "one question with different answers"),
        (exact, "a duplicate"),
        (near, "a near-duplicate"),
    ):
        for place in places:
            removed.setdefault(place, reason)
    advice = "one problem that is asked twice as often weighs twice: keep one of each"
    again = (
        f"{len(exact)} repeat another but for case and spacing; {len(differ)} are one question with different answers"
    )
    like = f"{len(near)} share {SIMILAR:.0%} of their {SHINGLE}-word shingles, and all numbers, with another"
    return [
        Check("duplicates", again, advice if differ or len(exact) > REPEATED * len(problems) else ""),
        Check("near-duplicates", like, advice if len(near) > REPEATED * len(problems) else ""),
    ]


def _leaks(
    problems: Sequence[Problem], others: Mapping[str, Sequence[Problem]], removed: dict[int, str]
) -> list[Check]:
    checks = []
    texts = [plain(problem.prompt) for problem in problems]
    for split, found in others.items():
        theirs = [plain(problem.prompt) for problem in found]
        known = set(theirs)
        same = {place for place, text in enumerate(texts) if text in known}
        # Those of the other split come first: near-duplicates are paired with the first of their kind.
        pairs = near_duplicates(theirs + texts)
        near = {later - len(theirs) for earlier, later in pairs if earlier < len(theirs) <= later} - same
        for place in sorted(same | near):
            removed.setdefault(place, f"also in {split}")
        advice = f"{split} would be answered by heart: leave these out" if same | near else ""
        checks.append(Check(f"leaks, {split}", f"{len(same)} stand there too, {len(near)} nearly", advice))
    return checks


def _guesses(problems: Sequence[Problem], limits: Limits) -> Check:
    counts = Counter(kind for problem in problems if (kind := guess_of(problem.answer, problem.prompt)) is not None)
    share = counts.total() / len(problems)
    found = f"{share:.1%} are answered by a guess" + "".join(f", {count} by {kind}" for kind, count in counts.items())
    advice = f"wrong reasoning is often rewarded: keep at most {limits.guess:.0%}, or ask for the value itself"
    return Check("answers by a guess", found, advice if share > limits.guess else "")


def _balance(task: Task, problems: Sequence[Problem], limits: Limits) -> Check:
    answers = [normalize(problem.answer) for problem in problems]
    counts = Counter(answers)
    shares = np.array(list(counts.values())) / len(problems)
    bits = max(0.0, float(-(shares * np.log2(shares)).sum()))
    frequent = [problems[answers.index(answer)].answer.strip() for answer, _ in counts.most_common(FREQUENT)]
    earned = [_earned(task, problems, answer) for answer in frequent]
    share, earns = float(shares.max()), max(earned)
    found = (
        f"{len(counts)} different ones, {bits:.2f} bits of entropy; the most frequent, {frequent[0][:40]!r}, is that "
        f"of {share:.1%}; to give {frequent[earned.index(earns)][:40]!r} always earns {earns:.1%}"
    )
    if share > limits.answer:
        return Check("balance of answers", found, f"one answer pays unread: keep at most {limits.answer:.0%} of each")
    advice = "one answer pays unread, as the verifier takes it for others too: make it stricter"
    return Check("balance of answers", found, advice if earns > limits.answer else "")


def _thin(problems: Sequence[Problem], limits: Limits, removed: dict[int, str]) -> None:
    """Leave out what is beyond the limits, the last problems first, until what is left keeps both."""
    kinds = [guess_of(problem.answer, problem.prompt) for problem in problems]
    answers = [normalize(problem.answer) for problem in problems]
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
    """How many of each answer to keep, so that none is more than `share` of what is kept, or than its equal part where
    the answers are too few for that.
    """
    share, kept = max(share, 1 / max(len(counts), 1)), np.array(counts)
    caps = range(1, max(counts, default=0) + 1)
    return bisect_left(caps, True, key=lambda cap: bool(cap > share * np.minimum(kept, cap).sum() + 1e-9))


def _earned(task: Task, problems: Sequence[Problem], answer: str) -> float:
    """The mean score of one answer to all problems, or to the first ASKED: a lenient verifier shows here."""
    scores = []
    for problem in problems[:ASKED]:
        try:
            scores.append(task.verify(problem, f"{ANSWER_OPENING}{answer}{ANSWER_CLOSING}"))
        except Exception:  # a verifier is foreign code, and in a run what it cannot grade earns nothing
            scores.append(0.0)
    return float(np.mean(scores))


def _coincidence(problems: Sequence[Problem]) -> Check:
    """Against chance: how often the prompts have the answers of other problems in them, by a fixed shuffle."""
    words = [set(re.findall(r"\w+", problem.prompt.casefold())) for problem in problems]
    answers = [set(re.findall(r"\w+", problem.answer.casefold())) for problem in problems]
    others = np.random.default_rng(0).permutation(len(problems))

    def contained(places: Sequence[int]) -> float:
        """How often the answers at these places stand in the prompts, in their order."""
        return float(
            np.mean([bool(answers[at]) and answers[at] <= said for at, said in zip(places, words, strict=True)])
        )

    own, chance = contained(range(len(problems))), contained(others.tolist())
    error = np.sqrt((own * (1 - own) + chance * (1 - chance)) / len(problems))
    advice = "the answer can be picked from the prompt: ask for what does not stand there, or name no options"
    found = f"in {own:.1%} of prompts their answer stands somewhere, in {chance:.1%} another problem's does"
    return Check("answers within prompts", found, advice if own - chance > max(COINCIDENCE, 3 * error) else "")


def _difficulty(problems: Sequence[Problem]) -> Check:
    counts = Counter(problem.difficulty for problem in problems)
    if len(counts) == 1:
        return Check("difficulty", "the problems carry none, or the same")
    low, middle, high = np.quantile([problem.difficulty for problem in problems], (0.0, 0.5, 1.0))
    level, count = counts.most_common(1)[0]
    found = f"{low:g} to {high:g}, half are at {middle:g} or below; {count / len(problems):.0%} are at {level:g}"
    advice = "nearly all are equally hard: Curriculum.difficulty could hardly act"
    return Check("difficulty", found, advice if count > TILTED * len(problems) else "")


def _number(problems: Sequence[Problem], prompts: int) -> Check:
    found = f"{len(problems)}; the {prompts} prompts of a run ask each {prompts / len(problems):.1f} times"
    advice = "a run can learn them by heart: train on more (train_problems), or for fewer steps"
    return Check("number of problems", found, advice if prompts > PASSES * len(problems) else "")
