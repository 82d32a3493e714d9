"""Algorithms as values composed of small frozen components; see `recipes` for the published ones."""

from rl_llm.algorithms.advantage import GPG, OPO, RLOO, BestOfGroup, MaxRL, Normalize, PassAtK, ReMax
from rl_llm.algorithms.aggregate import Balanced, FixedLength, SequenceMean, SequenceSum, TokenMean, VLNorm
from rl_llm.algorithms.algorithm import Algorithm, with_coefficient
from rl_llm.algorithms.component import (
    Advantage,
    Aggregate,
    Component,
    Correction,
    CriticLoss,
    Filter,
    Objective,
    Regularizer,
    Shaping,
)
from rl_llm.algorithms.controller import AdaptiveKL, EntropyTarget
from rl_llm.algorithms.correction import DivergenceMask, ImportanceWeight, OffPolicyMask, RatioMask
from rl_llm.algorithms.covariance_objective import ClipCov, KLCov
from rl_llm.algorithms.critic import BradleyTerry, ValueLoss
from rl_llm.algorithms.distillation import Distillation, GeneralizedJSD, ReverseKL
from rl_llm.algorithms.divergence import Divergence, DriftPenalty, EntropyBonus, KLPenalty, PositiveLikelihood
from rl_llm.algorithms.filters import DifficultyWindow, Overlong, RewardAtLeast, ZeroVariance, apply_filters
from rl_llm.algorithms.moments import Moments, no_moments
from rl_llm.algorithms.moments import update as update_moments
from rl_llm.algorithms.objective import DPPO, GMPO, GPPO, GSPO, SAPO, Clip, Nothing, PolicyGradient, SequenceClip
from rl_llm.algorithms.preference import DPO, IPO, KTO, Pairwise, Unpaired
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
from rl_llm.algorithms.shaping import FullKLInReward, KLInReward, RepetitionPenalty, SoftOverlong, WhitenRewards
from rl_llm.algorithms.whitening import GDPO, ClipAdvantage, Whiten
