"""T5: which tokens the upper bound clips.

Claim (arXiv 2508.08221, section 4.2.2): at 0.20 the most clipped tokens are connectives ("therefore", "but") that begin
a line of thought, at 0.28 fewer tokens are clipped and they are function words; shown on one prompt. Here the ids of a
policy's vocabulary are sorted by their text: digits (the content), signs (`+ = ;` and all else without a letter) and
marks, what a response is about to be: the tags that open and close thinking and answer and, in a language model, the
connectives; all that is left there are words. `clipped/KIND` is the share of all tokens that are of the kind and were
clipped, `tokens/KIND` the share that are of the kind. At the scale of the paper a run sorts the ids of its tokenizer's
files; `rl-llm plan` needs no files, and plans without the counting where there are none.

Measured by `rl-llm ablate experiments/paper/t5_clipped_tokens.py`, 5 seeds, differences with 95 % intervals:

* 0.28 clips fewer tokens: supported, -0.00088 [-0.00135, -0.00041].
* At 0.28 marks are a smaller part of what is clipped: undecided, -0.090 [-1.262, +1.081].
"""

import re
from dataclasses import dataclass, field, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from experiments.paper.scales import at_each_scale, starts
from experiments.paper.t4_clip_higher import arm
from experiments.quickstart import TASK
from rl_llm.algorithms import Clip
from rl_llm.studies import Hypothesis, Last, Study
from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from rl_llm.tasks.tokenizer import CharacterTokenizer
from rl_llm.types import Batch, Metrics, masked_mean

KINDS = ("digit", "sign", "mark", "word")
NONE = -1  # the kind of padding and of what ends a response
TAG = re.compile(r"<[^<>\s]+>")
# The paper names the first three; the others are chosen here, as their like.
CONNECTIVES = ("therefore", "if", "but", "so", "thus", "hence", "then", "since", "because", "however", "although")
# As they begin a word: within one, as in "specific", the letters are none. Capitals may begin a line.
WRITTEN = frozenset(text for word in CONNECTIVES for text in (f" {word}", f" {word.title()}", word.title()))


def kind(text: str) -> str:
    """Of a token with this text."""
    if text.strip().isdecimal():
        return "digit"
    if TAG.fullmatch(text) or text in WRITTEN:
        return "mark"
    return "word" if any(map(str.isalpha, text)) else "sign"


@cache
def kinds_of(tokenizer: CharacterTokenizer | HuggingFaceTokenizer) -> np.ndarray:
    """Of each id its place in KINDS or NONE, i32[V]. Raises FileNotFoundError where the tokenizer's files are not."""
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    return np.array([KINDS.index(kind(text)) if text else NONE for text in texts], np.int32)


@dataclass(frozen=True)
class ClipByKind(Clip):
    """Clip that counts the tokens it acts on from above by their kind, in the vocabulary of the tiny task."""

    def kinds(self) -> np.ndarray:
        """The place in KINDS, or NONE, of each id that a tokenizer has."""
        return kinds_of(TASK.tokenizer)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        loss, metrics = super().__call__(logp, batch)
        seen = (batch.weight > 0).astype(jnp.float32)
        clipped = (jnp.exp(logp - batch.old_logp) > 1.0 + self.high) & (batch.advantage > 0)
        kinds = self.kinds()
        of_token = jnp.asarray(kinds).at[batch.tokens].get(mode="fill", fill_value=NONE)  # a model may know more ids
        for index in sorted({*kinds.tolist()} - {NONE}):
            of_kind = of_token == index
            metrics |= {
                f"tokens/{KINDS[index]}": masked_mean(of_kind.astype(jnp.float32), seen),
                f"clipped/{KINDS[index]}": masked_mean((of_kind & clipped).astype(jnp.float32), seen),
            }
        return loss, metrics


@dataclass(frozen=True)
class ClipByKindOfText(ClipByKind):
    """The same in the vocabulary of a folder. `tokenizer` is that of the experiment, which refuses another."""

    tokenizer: HuggingFaceTokenizer = field(kw_only=True)

    def kinds(self) -> np.ndarray:
        """Those of the folder; NONE where it is not there: programs are planned without, and no run begins."""
        try:
            return kinds_of(self.tokenizer)
        except FileNotFoundError:
            return np.array([NONE], np.int32)


@dataclass(frozen=True)
class ShareOfClipped:
    """Clipped tokens of a kind among all that were clipped, over a share of its own: 1 where a kind is clipped as often
    as it occurs.
    """

    name: str

    def __call__(self, summary: dict, lines: list[dict]) -> float | None:
        steps = [line for line in lines if f"clipped/{self.name}" in line]
        clipped = {kind: sum(line.get(f"clipped/{kind}", 0.0) for line in steps) for kind in KINDS}
        occurs = sum(line[f"tokens/{self.name}"] for line in steps)
        if not sum(clipped.values()) or not occurs:
            return None
        return len(steps) * clipped[self.name] / sum(clipped.values()) / occurs

    def __str__(self) -> str:
        return f"share of {self.name}s in what is clipped, over their share of all tokens"


def study(scale: str) -> Study:
    arms = {}
    for bound in (0.20, 0.28):
        experiment = arm(scale, "weak", "small", 8, bound)
        objective = ClipByKind(0.2, bound)
        if isinstance(experiment.tokenizer, HuggingFaceTokenizer):
            objective = ClipByKindOfText(0.2, bound, tokenizer=experiment.tokenizer)
        arms[f"high_{bound:.2f}"] = replace(experiment, algorithm=replace(experiment.algorithm, objective=objective))
    low, high = arms
    clipped, marks = Last("policy/clip_high", 1.0), ShareOfClipped("mark")
    return Study(
        title="T5: which tokens the upper bound clips",
        starts=starts(scale, ("weak", "small")),
        arms=arms,
        hypotheses=(
            Hypothesis("0.28 clips fewer tokens", high, low, clipped, "less", 0.0005),
            Hypothesis("At 0.28 marks are a smaller part of what is clipped", high, low, marks, "less", 0.25),
        ),
    )


STUDY = at_each_scale(study)
