"""Built-in task: sums modulo a small number, which a tiny model learns to solve by writing the steps.

    prompt      4+5+4+1=
    response    <think>4+5=2;2+4=6;6+1=0;</think><answer>0</answer>

The bare answer is also allowed. It is hard to guess, while each written step needs one entry of an addition table.
Reinforcement learning can discover that gap. Demonstrations mix both ways of answering.
"""

from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from rl_llm.config.fields import Checked, UnitFloat
from rl_llm.problem import Problem, Split, problem_id, split_of
from rl_llm.tasks.answers import ANSWER_CLOSING, ANSWER_OPENING
from rl_llm.tasks.tokenizer import CharacterTokenizer


@dataclass(frozen=True)
class Demonstrations(Checked):
    """Mixture of responses of varied quality for the warm start.

    `direct`, `two_per_step` and `one_per_step` are shares that sum to 1: answer at once, or write running sums with two
    or one new terms per step. `slip` is the probability that the result of a written step is wrong; later steps carry
    it on, so the answer is wrong too unless another slip undoes it.
    """

    direct: UnitFloat = 0.60
    two_per_step: UnitFloat = 0.15
    one_per_step: UnitFloat = 0.25
    slip: UnitFloat = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        total = self.direct + self.two_per_step + self.one_per_step
        if abs(total - 1.0) > 1e-9:
            raise ValueError(
                f"direct={self.direct} + two_per_step={self.two_per_step} + one_per_step={self.one_per_step} is "
                f"{total:.6g}; the three shares must sum to 1"
            )


@dataclass(frozen=True)
class ModularSum(Checked):
    """Sums of `min_terms` to `max_terms` digits below `modulus`, modulo `modulus`."""

    min_terms: Annotated[int, Meta(ge=2)] = 2
    max_terms: int = 8
    modulus: Annotated[int, Meta(ge=2, le=10)] = 7  # a term is one digit
    demonstrations: Demonstrations = field(default_factory=Demonstrations)

    name: ClassVar[str] = "modular_sum"
    thinking_prefix: ClassVar[str] = "<think>"
    """Forced at the start of a response to measure how well a policy writes its steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_terms > self.max_terms:
            raise ValueError(f"min_terms={self.min_terms} is more than max_terms={self.max_terms}")

    @property
    def tokenizer(self) -> CharacterTokenizer:
        marks = ("+", "=", ";", self.thinking_prefix, "</think>", ANSWER_OPENING, ANSWER_CLOSING)
        return CharacterTokenizer((*(str(digit) for digit in range(self.modulus)), *marks))

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Draw `count` distinct problems of a split in random order, with a uniform number of terms.

        A large `count` uses up the few short sums; longer ones replace them. Raises ValueError if the split has fewer
        than `count` problems.
        """
        generator = np.random.default_rng(seed)
        prompts: list[str] = []
        for terms in range(self.min_terms, self.max_terms + 1):
            missing = count - len(prompts)
            # Binomial draws from the remainder, one per length, make a multinomial draw.
            share = generator.binomial(missing, 1.0 / (self.max_terms - terms + 1))
            prompts += self._draw(terms, share, split, generator)
        if len(prompts) < count:
            prompts += self._fill(prompts, count, split, generator)
        return [self.problem(prompts[index]) for index in generator.permutation(count)]

    def problem(self, prompt: str) -> Problem:
        """Parse the problem of a prompt ("4+5=")."""
        terms = [int(term) for term in prompt.rstrip("=").split("+")]
        return Problem(
            id=problem_id(self.name, prompt),
            prompt=prompt,
            answer=str(sum(terms) % self.modulus),
            difficulty=float(len(terms)),
        )

    def demonstrate(self, problem: Problem, generator: np.random.Generator) -> str:
        """Draw a response from the `demonstrations` mixture."""
        mixture = self.demonstrations
        draw = generator.random()
        if draw < mixture.direct:
            return f"{ANSWER_OPENING}{problem.answer}{ANSWER_CLOSING}"
        terms_per_step = 2 if draw < mixture.direct + mixture.two_per_step else 1
        return self._written_sum(problem, terms_per_step, mixture.slip, generator)

    def verify(self, problem: Problem, response: str) -> float:
        """Return 1.0 if the response ends with its only `<answer>` and that is right, else 0.0."""
        _, _, answer = response.partition(ANSWER_OPENING)
        return 1.0 if answer == f"{problem.answer}{ANSWER_CLOSING}" else 0.0

    def write_answer(self, problem: Problem, shown_prompt: str) -> str:
        """Write a response that gives the answer at once."""
        return f"{ANSWER_OPENING}{problem.answer}{ANSWER_CLOSING}"

    def _written_sum(self, problem: Problem, terms_per_step: int, slip: float, generator: np.random.Generator) -> str:
        total, *terms = (int(term) for term in problem.prompt.rstrip("=").split("+"))
        steps = []
        for start in range(0, len(terms), terms_per_step):
            added = terms[start : start + terms_per_step]
            written = "+".join(map(str, (total, *added)))
            total = (total + sum(added)) % self.modulus
            if generator.random() < slip:
                total = (total + int(generator.integers(1, self.modulus))) % self.modulus
            steps.append(f"{written}={total};")
        return f"{self.thinking_prefix}{''.join(steps)}</think>{ANSWER_OPENING}{total}{ANSWER_CLOSING}"

    def _draw(self, terms: int, count: int, split: Split, generator: np.random.Generator) -> list[str]:
        """Draw `count` distinct prompts with this many terms, or all if the split has fewer."""
        if self.modulus**terms <= 40 * count:
            prompts = self._all_prompts(terms, split)
            return [prompts[index] for index in generator.permutation(len(prompts))[:count]]
        # A split holds at least a tenth of the prompts, four times `count`, so rejection ends soon. A dict keeps the
        # order of drawing.
        drawn: dict[str, None] = {}
        while len(drawn) < count:
            prompt = _prompt(generator.integers(self.modulus, size=terms).tolist())
            if split_of(prompt) == split:
                drawn[prompt] = None
        return list(drawn)

    def _fill(self, prompts: list[str], count: int, split: Split, generator: np.random.Generator) -> list[str]:
        """Draw the missing prompts up to `count` from the unused ones of every length."""
        used = set(prompts)
        lengths = range(self.min_terms, self.max_terms + 1)
        unused = [prompt for terms in lengths for prompt in self._all_prompts(terms, split) if prompt not in used]
        if len(used) + len(unused) < count:
            raise ValueError(
                f"{count} {split} problems asked for, but sums of {self.min_terms} to {self.max_terms} terms modulo "
                f"{self.modulus} have {len(used) + len(unused)}; ask for fewer, or raise max_terms"
            )
        return [unused[index] for index in generator.permutation(len(unused))[: count - len(used)]]

    def _all_prompts(self, terms: int, split: Split) -> list[str]:
        prompts = (_prompt(digits) for digits in product(range(self.modulus), repeat=terms))
        return [prompt for prompt in prompts if split_of(prompt) == split]


def _prompt(terms: list[int] | tuple[int, ...]) -> str:
    return "+".join(map(str, terms)) + "="
