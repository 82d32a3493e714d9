"""Algorithms as values composed of small frozen components; see `recipes` for the published ones."""

from rl_llm.algorithms.advantage import GPG, OPO, RLOO, BestOfGroup, MaxRL, Normalize, PassAtK, ReMax
from rl_llm.algorithms.aggregate import Balanced, FixedLength, SequenceMean, SequenceSum, TokenMean, VLNorm
from rl_llm.algorithms.algorithm import Algorithm, with_coefficient
from rl_llm.algorithms.controller import AdaptiveKL, EntropyTarget
from rl_llm.algorithms.correction import DivergenceMask, ImportanceWeight, OffPolicyMask, RatioMask
from rl_llm.algorithms.covariance_objective import ClipCov, KLCov
from rl_llm.algorithms.critic import BradleyTerry, ValueLoss
from rl_llm.algorithms.distillation import Distillation, GeneralizedJSD, ReverseKL
from rl_llm.algorithms.divergence import Divergence, DriftPenalty, EntropyBonus, KLPenalty
from rl_llm.algorithms.filters import DifficultyWindow, Overlong, RewardAtLeast, ZeroVariance, apply_filters
from rl_llm.algorithms.likelihood import PositiveLikelihood
from rl_llm.algorithms.moments import Moments, no_moments
from rl_llm.algorithms.moments import update as update_moments
from rl_llm.algorithms.objective import DPPO, GPPO, SAPO, Clip, Nothing, PolicyGradient
from rl_llm.algorithms.preference import DPO, IPO, KTO
from rl_llm.algorithms.preference_objective import Pairwise, Unpaired
from rl_llm.algorithms.recipes import (
    CISPO_SCALE_RL,
    DAPO,
    DIRECT_PREFERENCE,
    GKD,
    GRPO,
    GRPO_KL,
    GSPO_SEQUENCE,
    KAHNEMAN_TVERSKY,
    LEAVE_ONE_OUT,
    LITE_PPO,
    OLMO_3_ZERO,
    ON_POLICY_DISTILLATION,
    PPO,
    REINFORCE,
    REINFORCE_PLUS_PLUS,
    REINFORCE_PLUS_PLUS_BASELINE,
    REJECTION_SAMPLING,
    REWARD_MODEL,
    VAPO,
    dr_grpo,
)
from rl_llm.algorithms.reference import Reference
from rl_llm.algorithms.returns import GAE, LengthAdaptive, RewardToGo
from rl_llm.algorithms.run_shape import RunShape
from rl_llm.algorithms.score_objective import AIPO, CISPO, TOPR, VESPO
from rl_llm.algorithms.sequence_objective import GMPO, GSPO, SequenceClip
from rl_llm.algorithms.several_rewards import GDPO
from rl_llm.algorithms.shaping import FullKLInReward, KLInReward, RepetitionPenalty, SoftOverlong, WhitenRewards
from rl_llm.algorithms.whitening import ClipAdvantage, Whiten

__all__ = [
    "AIPO",
    "CISPO",
    "CISPO_SCALE_RL",
    "DAPO",
    "DIRECT_PREFERENCE",
    "DPO",
    "DPPO",
    "GAE",
    "GDPO",
    "GKD",
    "GMPO",
    "GPG",
    "GPPO",
    "GRPO",
    "GRPO_KL",
    "GSPO",
    "GSPO_SEQUENCE",
    "IPO",
    "KAHNEMAN_TVERSKY",
    "KTO",
    "LEAVE_ONE_OUT",
    "LITE_PPO",
    "OLMO_3_ZERO",
    "ON_POLICY_DISTILLATION",
    "OPO",
    "PPO",
    "REINFORCE",
    "REINFORCE_PLUS_PLUS",
    "REINFORCE_PLUS_PLUS_BASELINE",
    "REJECTION_SAMPLING",
    "REWARD_MODEL",
    "RLOO",
    "SAPO",
    "TOPR",
    "VAPO",
    "VESPO",
    "AdaptiveKL",
    "Algorithm",
    "Balanced",
    "BestOfGroup",
    "BradleyTerry",
    "Clip",
    "ClipAdvantage",
    "ClipCov",
    "DifficultyWindow",
    "Distillation",
    "Divergence",
    "DivergenceMask",
    "DriftPenalty",
    "EntropyBonus",
    "EntropyTarget",
    "FixedLength",
    "FullKLInReward",
    "GeneralizedJSD",
    "ImportanceWeight",
    "KLCov",
    "KLInReward",
    "KLPenalty",
    "LengthAdaptive",
    "MaxRL",
    "Moments",
    "Normalize",
    "Nothing",
    "OffPolicyMask",
    "Overlong",
    "Pairwise",
    "PassAtK",
    "PolicyGradient",
    "PositiveLikelihood",
    "RatioMask",
    "ReMax",
    "Reference",
    "RepetitionPenalty",
    "ReverseKL",
    "RewardAtLeast",
    "RewardToGo",
    "RunShape",
    "SequenceClip",
    "SequenceMean",
    "SequenceSum",
    "SoftOverlong",
    "TokenMean",
    "Unpaired",
    "VLNorm",
    "ValueLoss",
    "Whiten",
    "WhitenRewards",
    "ZeroVariance",
    "apply_filters",
    "dr_grpo",
    "no_moments",
    "update_moments",
    "with_coefficient",
]
