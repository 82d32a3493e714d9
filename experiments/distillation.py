"""Distil a policy trained by RL into a model of less than half its size (0.10 M parameters instead of 0.22 M).

    rl-llm train experiments/recipes.py:warm --seed 0 --out runs/recipes/warm-seed0
    rl-llm train experiments/recipes.py:LITE_PPO --seed 0 --out runs/recipes/LITE_PPO-seed0           the teacher
    rl-llm train experiments/distillation.py:on_policy        reverse KL on the student's own responses
    rl-llm train experiments/distillation.py:gkd              GKD: half of the steps use the teacher's responses
    rl-llm evaluate runs/recipes/LITE_PPO-seed0 --split train --problems 2048 --responses runs/taught.jsonl --logits 8
    rl-llm train experiments/distillation.py:offline          stored logits, without the teacher
    rl-llm train experiments/distillation.py:without          the student, with RL alone

The student has the same warm start. `python experiments/pipelines_table.py` measures all of them.
"""

from dataclasses import replace

from experiments.quickstart import base as quickstart
from rl_llm import algorithms
from rl_llm.algorithms import Distillation, GeneralizedJSD
from rl_llm.experiment import StoredResponses, Teacher
from rl_llm.learner.optimizer import AdamW

TEACHER = "runs/recipes/LITE_PPO-seed0"
WARM_START = quickstart.warm_start
assert WARM_START is not None

base = without = replace(
    quickstart,
    model=replace(quickstart.model, width=64, feed_forward=128),
    warm_start=replace(WARM_START, gate=None),
    optimizer=AdamW(1e-3, warmup_updates=6, schedule="linear", final_fraction=0.1),
    steps=24,
    evaluation=replace(quickstart.evaluation, every=3),
)
on_policy = replace(base, algorithm=algorithms.ON_POLICY_DISTILLATION, teacher=Teacher(TEACHER))
gkd = replace(base, algorithm=algorithms.GKD, teacher=Teacher(TEACHER, top_tokens=8, on_policy=0.5))
offline = replace(
    base,
    algorithm=replace(algorithms.GKD, regularizers=(Distillation(GeneralizedJSD(beta=0.0)),)),  # the forward KL
    responses=StoredResponses("runs/taught.jsonl", top_tokens=8),
)

ABLATION = {"on_policy": on_policy, "gkd": gkd, "offline": offline, "without": without}
