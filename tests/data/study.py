"""A tiny study: two arms that differ in a number, two equal ones, one first policy for all.

Run:    rl-llm ablate tests/data/study.py --scale smoke --out runs/tiny-study
"""

from dataclasses import replace

from rl_llm.learner.optimizer import AdamW
from rl_llm.studies import Final, Hypothesis, Last, Study
from tests.data import tiny

base = replace(tiny.base, warm_start=None, start="warm", steps=4, optimizer=AdamW(1e-2))

STUDY = {
    "smoke": Study(
        title="A larger rate moves the policy further",
        starts={"warm": tiny.base},
        arms={
            "slow": replace(base, optimizer=AdamW(1e-4)),
            "fast": base,
            "twin": base,
        },
        hypotheses=(
            Hypothesis("A larger rate lowers the entropy", "fast", "slow", Last("policy/entropy"), "less", 0.01),
            Hypothesis("The same twice is the same", "twin", "fast", Final(), "none", 0.01),
        ),
        seeds=3,
    )
}
