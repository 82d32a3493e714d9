"""The tiny experiment without a warm start, as it is and with suites that are watched.

Run:    rl-llm train tests/data/suites.py:watched --out runs/watched
"""

from dataclasses import replace

from rl_llm.experiment import Evaluation, Suite
from rl_llm.sampler import Sampling
from tests.data import tiny

base = replace(tiny.cold, steps=2, evaluation=Evaluation(problems=9, every=1))
SUITES = (
    Suite("unseen", tiny.TASK, "validation", problems=11),
    Suite("seen", tiny.TASK, "train", problems=12, samples=2, sampling=Sampling(max_tokens=20, temperature=0.5)),
)
watched = replace(base, evaluation=replace(base.evaluation, suites=SUITES))
