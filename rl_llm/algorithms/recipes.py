"""Published algorithms as values. Comments name the source, gaps in the paper and differences from it."""

from dataclasses import replace

from rl_llm.algorithms.advantage import RLOO, Normalize
from rl_llm.algorithms.aggregate import FixedLength, SequenceMean, SequenceSum, TokenMean
from rl_llm.algorithms.algorithm import Algorithm
from rl_llm.algorithms.compatibility import THE_REWARD
from rl_llm.algorithms.correction import ImportanceWeight
from rl_llm.algorithms.critic import BradleyTerry, ValueLoss
from rl_llm.algorithms.distillation import Distillation, GeneralizedJSD, ReverseKL
from rl_llm.algorithms.divergence import KLPenalty, PositiveLikelihood
from rl_llm.algorithms.filters import Overlong, RewardAtLeast, ZeroVariance
from rl_llm.algorithms.objective import GSPO, Clip, Nothing, PolicyGradient
from rl_llm.algorithms.preference import DPO, KTO, Pairwise, Unpaired
from rl_llm.algorithms.returns import GAE, LengthAdaptive, RewardToGo
from rl_llm.algorithms.score_objective import CISPO
from rl_llm.algorithms.shaping import KLInReward
from rl_llm.algorithms.whitening import Whiten

# Williams 1992, with the mean reward of the batch as the baseline.
REINFORCE = Algorithm(
    advantage=Normalize(mean="batch", std="none"),
    objective=PolicyGradient(),
    aggregate=SequenceSum(),
)

# arXiv 1707.06347 with a critic (Experiment.critic), as language models are trained: whitened advantages, and values
# clipped like the ratio.
PPO = Algorithm(
    advantage=Whiten(GAE()),
    objective=Clip(),
    aggregate=TokenMean(),
    value_loss=ValueLoss(clip=0.2),
)

# arXiv 2504.05118: the critic learns the return itself (first alone: Critic.pretraining_steps), the policy's lambda
# grows with the response, clip-higher, and the likelihood of right answers as a second loss.
VAPO = Algorithm(
    advantage=GAE(lam=LengthAdaptive(alpha=0.05), critic_lam=1.0),
    objective=Clip(low=0.2, high=0.28),
    aggregate=TokenMean(),
    regularizers=(PositiveLikelihood(coefficient=0.1),),
    value_loss=ValueLoss(),
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


# arXiv 2402.14740: each response against the mean of the others.
LEAVE_ONE_OUT = Algorithm(advantage=RLOO(), objective=PolicyGradient(), aggregate=SequenceSum())

# arXiv 2501.03262: the KL in the reward of each token, then whitened over the tokens of the whole batch; the baseline
# variant first subtracts the group's mean.
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

# arXiv 2503.14476 without the penalty on long responses, which needs the task's length (add SoftOverlong to `shaping`),
# and without resampling dropped prompts (Experiment.dynamic_sampling).
DAPO = Algorithm(
    advantage=Normalize(mean="group", std="group"),
    objective=Clip(low=0.2, high=0.28),
    aggregate=TokenMean(),
    filters=(ZeroVariance(),),
)

# arXiv 2507.18071: the ratio of the whole response, with matching bounds.
GSPO_SEQUENCE = replace(GRPO, objective=GSPO())

# The loss of ScaleRL (arXiv 2510.13786) after MiniMax-M1's CISPO (2506.13585): truncated importance weights on the
# policy gradient, the mean over a prompt's tokens, the std of all advantages of a batch. Its ratio is to the sampling
# policy, CISPO's to the policy at the first update: if the sampler lags, take AIPO(cap), which is min(pi / mu, cap), or
# a correction.
CISPO_SCALE_RL = Algorithm(
    advantage=Normalize(mean="group", std="batch", std_of="centred"),
    objective=CISPO(),
    aggregate=TokenMean(scope="group"),
    filters=(ZeroVariance(),),
)

# The RL-Zero of Olmo 3 (arXiv 2512.13961): centred rewards, clip-higher, truncated importance weights for a lagging
# sampler, no signal from truncated responses. The run adds dynamic sampling and drops solved problems.
OLMO_3_ZERO = Algorithm(
    advantage=Normalize(mean="group", std="none"),
    objective=Clip(low=0.2, high=0.272),
    aggregate=TokenMean(),
    filters=(ZeroVariance(), Overlong()),
    corrections=(ImportanceWeight(upper=2.0),),
)

# arXiv 2508.08221, section 5: group mean, batch std, token-level loss, vanilla clip; no critic, no KL. The paper
# gives neither ddof (here 1, torch's default) nor eps, nor whether the std is of raw or centred rewards (here raw, its
# equation 6). Its baselines are GRPO_KL and DAPO with the penalty on long responses and dynamic sampling; it gives
# neither beta, nor the upper bound, nor the length of the penalty, nor how often groups are resampled.
LITE_PPO = Algorithm(
    advantage=Normalize(mean="group", std="batch"),
    objective=Clip(),
    aggregate=TokenMean(),
)

# RAFT (arXiv 2304.06767): maximum likelihood on the accepted responses of each rollout, i.e. repeated filtered SFT.
# The control for every policy-gradient method: it sees the same samples and learns from right ones only.
REJECTION_SAMPLING = Algorithm(
    advantage=Normalize(mean="none", std="none"),
    objective=PolicyGradient(),
    aggregate=TokenMean(),
    filters=(RewardAtLeast(1.0),),
)

# arXiv 2305.18290 on the pairs of a rollout's right and wrong responses (online), or on stored pairs (offline).
DIRECT_PREFERENCE = Algorithm(
    advantage=THE_REWARD,
    objective=Pairwise(DPO()),
    aggregate=SequenceSum(),
    filters=(ZeroVariance(),),
)

# arXiv 2402.01306: single responses, each right or wrong.
KAHNEMAN_TVERSKY = Algorithm(advantage=THE_REWARD, objective=Unpaired(KTO()), aggregate=SequenceSum())

# arXiv 2203.02155, section 3.5, step 2: a critic learns to rank responses by their rewards. It is a reward model for
# other runs; with Critic.pretraining_steps equal to `steps` no policy is trained.
REWARD_MODEL = Algorithm(
    advantage=THE_REWARD,
    objective=Nothing(),
    aggregate=TokenMean(),
    value_loss=BradleyTerry(),
    value_aggregate=SequenceSum(),
)

# MiniLLM (arXiv 2306.08543) token by token, today's on-policy distillation: the reverse KL to a teacher on responses of
# the student.
ON_POLICY_DISTILLATION = Algorithm(advantage=THE_REWARD, objective=ReverseKL(), aggregate=TokenMean())

# arXiv 2306.13649: a divergence of whole distributions, on responses of the student, the teacher or a file.
GKD = Algorithm(
    advantage=THE_REWARD,
    objective=Nothing(),
    aggregate=TokenMean(),
    regularizers=(Distillation(GeneralizedJSD(beta=0.5)),),
)
