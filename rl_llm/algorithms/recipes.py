"""Published algorithms as values. What a paper left out is said beside it."""

from rl_llm.algorithms.advantage import Normalize
from rl_llm.algorithms.aggregate import SequenceMean, TokenMean
from rl_llm.algorithms.algorithm import Algorithm
from rl_llm.algorithms.filters import RewardAtLeast
from rl_llm.algorithms.objective import Clip, PolicyGradient

# arXiv 2402.03300 with outcome rewards. Its KL term is left out, as in most later work.
GRPO = Algorithm(
    advantage=Normalize(mean="group", std="group"),
    objective=Clip(),
    aggregate=SequenceMean(),
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
