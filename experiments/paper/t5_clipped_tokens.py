"""T5: which tokens the upper bound clips.

Claim (arXiv 2508.08221, section 4.2.2): at 0.20 the most clipped tokens are connectives ("therefore", "but") that begin
a line of thought; at 0.28 fewer tokens are clipped, and they are function words. The paper shows one prompt. Here the
ids of a policy's vocabulary are classified by their text: digits (the content), signs (`+ = ;` and any other text with
no letter), marks, and otherwise words. Marks steer a response: the tags around thinking and answer and, in a language
model, the connectives. `clipped/KIND` is the share of all tokens that are of the kind and clipped, `tokens/KIND` the
share of the kind. At the scale `paper` a run classifies the ids of its tokenizer's files; `rl-llm plan` works without
the files and then plans without the counting.

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
NONE = -1  # the kind of padding and end-of-response tokens
TAG = re.compile(r"<[^<>\s]+>")
# The paper names the first three; the others are similar words chosen here.
CONNECTIVES = ("therefore", "if", "but", "so", "thus", "hence", "then", "since", "because", "however", "although")
# Only at the start of a word ("if" in "specific" does not count). Capitalised words may begin a line.
WRITTEN = frozenset(text for word in CONNECTIVES for text in (f" {word}", f" {word.title()}", word.title()))


def kind(text: str) -> str:
    """The kind of a token with this text."""
    if text.strip().isdecimal():
        return "digit"
    if TAG.fullmatch(text) or text in WRITTEN:
        return "mark"
    return "word" if any(map(str.isalpha, text)) else "sign"


@cache
def kinds_of(tokenizer: CharacterTokenizer | HuggingFaceTokenizer) -> np.ndarray:
    """The index in KINDS, or NONE, of each id, i32[V]. Raises FileNotFoundError without the tokenizer's files."""
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    return np.array([KINDS.index(kind(text)) if text else NONE for text in texts], np.int32)


@dataclass(frozen=True)
class ClipByKind(Clip):
    """Clip that counts the tokens clipped from above by kind, for the vocabulary of the tiny task."""

    def kinds(self) -> np.ndarray:
        """The index in KINDS, or NONE, of each id, i32[V]."""
        return kinds_of(TASK.tokenizer)

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        loss, metrics = super().__call__(logp, batch)
        seen = (batch.weight > 0).astype(jnp.float32)
        clipped = (jnp.exp(logp - batch.old_logp) > 1.0 + self.high) & (batch.advantage > 0)
        kinds = self.kinds()
        found = jnp.asarray(kinds).at[batch.tokens].get(mode="fill", fill_value=NONE)  # a model may have more ids
        for index in sorted({*kinds.tolist()} - {NONE}):
            same = found == index
            metrics |= {
                f"tokens/{KINDS[index]}": masked_mean(same.astype(jnp.float32), seen),
                f"clipped/{KINDS[index]}": masked_mean((same & clipped).astype(jnp.float32), seen),
            }
        return loss, metrics


@dataclass(frozen=True)
class ClipByKindOfText(ClipByKind):
    """The same for a tokenizer folder. `tokenizer` must be the experiment's, which refuses any other."""

    tokenizer: HuggingFaceTokenizer = field(kw_only=True)

    def kinds(self) -> np.ndarray:
        """The kinds of the folder's ids; NONE if it is missing, which allows planning (a run would be refused)."""
        try:
            return kinds_of(self.tokenizer)
        except FileNotFoundError:
            return np.array([NONE], np.int32)


@dataclass(frozen=True)
class ShareOfClipped:
    """The share of a kind among clipped tokens, divided by its share of all tokens: 1 if clipping ignores kinds."""

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
