"""The paper's experiment at its smallest, offline: it learns from stored responses that the task grades.

Run:    rl-llm train tests/data/oracle.py --set task.path=math.jsonl --set responses.path=stored.jsonl --out runs/oracle
"""

from dataclasses import replace

from experiments.qwen3_4b_gsm8k import smoke
from rl_llm.experiment import StoredResponses
from rl_llm.tasks.datasets import JsonlProblems

base = replace(
    smoke,
    task=JsonlProblems("math.jsonl"),
    responses=StoredResponses("stored.jsonl"),
    responses_per_prompt=2,
    staleness=0,
    sampling=replace(smoke.sampling, max_tokens=48),
)
