"""Algorithms as values composed of small frozen components; see `recipes` for the published ones."""

from rl_llm.algorithms.advantage import Normalize
from rl_llm.algorithms.aggregate import SequenceMean, TokenMean
from rl_llm.algorithms.algorithm import Algorithm
from rl_llm.algorithms.filters import RewardAtLeast
from rl_llm.algorithms.objective import Clip, PolicyGradient
from rl_llm.algorithms.recipes import GRPO, LITE_PPO, REJECTION_SAMPLING
from rl_llm.algorithms.setting import Setting

__all__ = [
    "GRPO",
    "LITE_PPO",
    "REJECTION_SAMPLING",
    "Algorithm",
    "Clip",
    "Normalize",
    "PolicyGradient",
    "RewardAtLeast",
    "SequenceMean",
    "Setting",
    "TokenMean",
]
