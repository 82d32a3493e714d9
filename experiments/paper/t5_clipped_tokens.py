"""T5: which tokens the upper bound clips.

Claim (arXiv 2508.08221, section 4.2.2): at 0.20 the most clipped tokens are connectives ("therefore", "but") that begin
a line of thought, at 0.28 fewer tokens are clipped and they are function words; shown on one prompt. Here a policy's
vocabulary has three kinds: digits (the content), signs within a step (`+ = ;`) and marks that open and close thinking
and answer (what a response is about to be: its connectives). `clipped/KIND` is the share of all tokens that are of the
kind and were clipped, `tokens/KIND` the share that are of the kind. At the scale of the paper the kinds are those
of ids, which its tokenizer does not sort: there the study is left out.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from experiments.paper.scales import starts
from experiments.paper.t4_clip_higher import arm
from experiments.quickstart import TASK
from rl_llm.algorithms import Clip
from rl_llm.studies import Hypothesis, Last, Study
from rl_llm.types import Batch, Metrics, masked_mean

TOKENIZER = TASK.tokenizer
KINDS = ("digit", "sign", "mark")


def kind(symbol: str) -> str:
    """Of a symbol of the task's vocabulary."""
    return "digit" if symbol.isdecimal() else "sign" if len(symbol) == 1 else "mark"


@dataclass(frozen=True)
class ClipByKind(Clip):
    """Clip that counts the tokens it acts on from above by the kind of the token."""

    def __call__(self, logp: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        loss, metrics = super().__call__(logp, batch)
        seen = (batch.weight > 0).astype(jnp.float32)
        clipped = (jnp.exp(logp - batch.old_logp) > 1.0 + self.high) & (batch.advantage > 0)
        symbols = [TOKENIZER.decode([token]) for token in range(TOKENIZER.vocab_size)]  # padding and the end have none
        kinds = jnp.array([KINDS.index(kind(symbol)) if symbol else -1 for symbol in symbols])
        for index, name in enumerate(KINDS):
            of_kind = kinds[batch.tokens] == index
            metrics |= {
                f"tokens/{name}": masked_mean(of_kind.astype(jnp.float32), seen),
                f"clipped/{name}": masked_mean((of_kind & clipped).astype(jnp.float32), seen),
            }
        return loss, metrics


@dataclass(frozen=True)
class ShareOfClipped:
    """Clipped tokens of a kind among all that were clipped, over a share of its own: 1 where a kind is clipped as often
    as it occurs.
    """

    name: str

    def __call__(self, summary: dict, lines: list[dict]) -> float | None:
        steps = [line for line in lines if f"clipped/{self.name}" in line]
        clipped = {kind: sum(line[f"clipped/{kind}"] for line in steps) for kind in KINDS}
        occurs = sum(line[f"tokens/{self.name}"] for line in steps)
        if not sum(clipped.values()) or not occurs:
            return None
        return len(steps) * clipped[self.name] / sum(clipped.values()) / occurs


def study(scale: str) -> Study:
    arms = {}
    for bound in (0.20, 0.28):
        experiment = arm(scale, "weak", "small", 8, bound)
        algorithm = replace(experiment.algorithm, objective=ClipByKind(0.2, bound))
        arms[f"high_{bound:.2f}"] = replace(experiment, algorithm=algorithm)
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


STUDY = {scale: study(scale) for scale in ("smoke", "cpu")}
