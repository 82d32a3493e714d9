"""Policies to be exported: a tiny Qwen3 with a chat template, whole and with adapters."""

from dataclasses import replace
from pathlib import Path

from rl_llm.config import load_experiment
from rl_llm.experiment import Experiment
from rl_llm.model import Lora

FILE = Path(__file__).parents[2] / "experiments" / "qwen3_4b_gsm8k.py"

base = replace(load_experiment(f"{FILE}:smoke", Experiment)[1], staleness=0)

ABLATION = {
    "lora": replace(base, model=replace(base.model, lora=Lora(rank=2, alpha=8.0, targets=("query", "down")))),
    "wide": replace(base, model=replace(base.model, lora=Lora(rank=3, alpha=8.0, targets=("query", "down")))),
}
