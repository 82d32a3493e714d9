"""Published algorithms as values. What a paper left out, and what of it a recipe leaves out, is said beside it."""

from dataclasses import replace

from rl_llm.algorithms.advantage import RLOO, Normalize
from rl_llm.algorithms.aggregate import FixedLength, SequenceMean, SequenceSum, TokenMean
from rl_llm.algorithms.algorithm import Algorithm
from rl_llm.algorithms.divergence import KLPenalty
from rl_llm.algorithms.filters import RewardAtLeast, ZeroVariance
from rl_llm.algorithms.objective import Clip, PolicyGradient
from rl_llm.algorithms.returns import RewardToGo
from rl_llm.algorithms.score_objective import CISPO
from rl_llm.algorithms.sequence_objective import GSPO
from rl_llm.algorithms.shaping import KLInReward
from rl_llm.algorithms.whitening import Whiten

# Williams 1992, with the mean reward of the batch as the baseline.
REINFORCE = Algorithm(
    advantage=Normalize(mean="batch", std="none"),
    objective=PolicyGradient(),
    aggregate=SequenceSum(),
)

# arXiv 2402.03300 with outcome rewards. Its KL term is left out, as in most later work; GRPO_KL has it.
GRPO = Algorithm(
    advantage=Normalize(mean="group", std="group"),
    objective=Clip(),
    aggregate=SequenceMean(),
)
GRPO_KL = replace(GRPO, regularizers=(KLPenalty(coefficient=0.04),))


def dr_grpo(max_tokens: int) -> Algorithm:
    """arXiv 2503.20783, section 3.2: GRPO without the std and without the division by the response's own length."""
    return replace(GRPO, advantage=Normalize(mean="group", std="none"), aggregate=FixedLength(max_tokens))


# arXiv 2402.14740: every response against the mean of the others.
LEAVE_ONE_OUT = Algorithm(advantage=RLOO(), objective=PolicyGradient(), aggregate=SequenceSum())

# arXiv 2501.03262: the KL in the reward of each token, then whitened over the tokens of the whole batch; the baseline
# variant takes the group's mean off first.
REINFORCE_PLUS_PLUS = Algorithm(
    advantage=Whiten(RewardToGo()),
    objective=Clip(),
    aggregate=TokenMean(),
    shaping=(KLInReward(coefficient=0.01),),
)
REINFORCE_PLUS_PLUS_BASELINE = Algorithm(
    advantage=Whiten(RewardToGo(outcome=Normalize(mean="group", std="none"))),
    objective=Clip(),
    aggregate=TokenMean(),
)

# arXiv 2503.14476 without the fine on long responses, which needs the task's length (add SoftOverlong to `shaping`),
# and without sampling more prompts in the place of those that are dropped.
DAPO = Algorithm(
    advantage=Normalize(mean="group", std="group"),
    objective=Clip(low=0.2, high=0.28),
    aggregate=TokenMean(),
    filters=(ZeroVariance(),),
)

# arXiv 2507.18071: the ratio of the whole response, and bounds to match.
GSPO_SEQUENCE = replace(GRPO, objective=GSPO())

# The loss of ScaleRL (arXiv 2510.13786) after MiniMax-M1's CISPO (2506.13585): truncated importance weights on the
# policy gradient, the mean over a prompt's tokens, batch std.
CISPO_SCALE_RL = Algorithm(
    advantage=Normalize(mean="group", std="batch"),
    objective=CISPO(),
    aggregate=TokenMean(scope="group"),
    filters=(ZeroVariance(),),
)

# arXiv 2508.08221, section 5: group mean, batch std, token-level loss, vanilla clip; no critic, no KL. The paper
# prints neither ddof (1, torch's default, is taken) nor eps, nor whether the std is of raw or of centred rewards (raw,
# as its equation 6 has it).
LITE_PPO = Algorithm(
    advantage=Normalize(mean="group", std="batch"),
    objective=Clip(),
    aggregate=TokenMean(),
)

# RAFT (arXiv 2304.06767): maximum likelihood on the accepted responses of each rollout, i.e. filtered SFT, repeated.
# The control for every policy-gradient method: it sees the same samples and learns from the right ones only.
REJECTION_SAMPLING = Algorithm(
    advantage=Normalize(mean="none", std="none"),
    objective=PolicyGradient(),
    aggregate=TokenMean(),
    filters=(RewardAtLeast(1.0),),
)
