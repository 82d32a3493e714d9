"""T4: a higher upper clip bound for weak and for strong policies.

Claim (arXiv 2508.08221, section 4.2.1): an upper bound of 0.28 instead of 0.20 helps models that already reason well
(their entropy falls more slowly), and does little for base models, with a clip fraction of about 0.003. Arms make two,
four and eight updates per rollout: a bound acts from the second update on (with one update it is refused as a knob that
cannot act). The clip fraction is a metric of every run.

Measured by `rl-llm ablate experiments/paper/t4_clip_higher.py`, 5 seeds, differences with 95 % intervals:

* Strong: 0.28 ends higher: undecided, -0.000 [-0.037, +0.037].
* Strong: 0.28 keeps more entropy: no effect, +0.000 [-0.001, +0.001].
* Strong, 8 updates: 0.28 ends higher: undecided, +0.049 [-0.176, +0.274].
* Strong, 8 updates: 0.28 clips fewer tokens: no effect, -0.0002 [-0.0003, -0.0000].
* Strong: 8 updates clip more than 2: no effect, +0.0005 [+0.0002, +0.0007].
* Weak: 0.28 makes no difference: undecided, +0.029 [-0.077, +0.136].
"""

from dataclasses import replace

from experiments.paper.scales import POLICIES, at_each_scale, base, starts
from rl_llm.algorithms import LITE_PPO, Clip
from rl_llm.experiment import Experiment
from rl_llm.studies import Final, Hypothesis, Last, Study

UPDATES = (2, 4, 8)
HIGH = (0.20, 0.28)


def arm(scale: str, policy: str, size: str, updates: int, high: float) -> Experiment:
    """Lite PPO with an upper clip bound and a number of updates per rollout."""
    lite = base(scale, policy, size=size)
    parts = max(1, lite.micro_batches * lite.updates_per_rollout // updates)  # equal micro-batch sizes
    algorithm = replace(LITE_PPO, objective=Clip(0.2, high))
    return replace(lite, algorithm=algorithm, updates_per_rollout=updates, micro_batches=parts)


def study(scale: str) -> Study:
    arms = {
        f"{policy}_{updates}_updates_{high:.2f}": arm(scale, policy, "small", updates, high)
        for policy in POLICIES
        for updates in UPDATES
        for high in HIGH
    }
    entropy, clipped = Last("policy/entropy"), Last("policy/clip_high", 1.0)
    weak, strong = (tuple(f"{policy}_4_updates_{high:.2f}" for high in HIGH) for policy in POLICIES)
    more = tuple(f"strong_8_updates_{high:.2f}" for high in HIGH)
    few = f"strong_{UPDATES[0]}_updates_{HIGH[0]:.2f}"
    return Study(
        title="T4: clip-higher for weak and strong policies",
        starts=starts(scale, *((policy, "small") for policy in POLICIES)),
        arms=arms,
        hypotheses=(
            Hypothesis("Strong: 0.28 ends higher", strong[1], strong[0], Final(), "greater", 0.02),
            Hypothesis("Strong: 0.28 keeps more entropy", strong[1], strong[0], entropy, "greater", 0.01),
            Hypothesis("Strong, 8 updates: 0.28 ends higher", more[1], more[0], Final(), "greater", 0.02),
            Hypothesis("Strong, 8 updates: 0.28 clips fewer tokens", more[1], more[0], clipped, "less", 0.001),
            Hypothesis("Strong: 8 updates clip more than 2", more[0], few, clipped, "greater", 0.001),
            Hypothesis("Weak: 0.28 makes no difference", weak[1], weak[0], Final(), "none", 0.02),
        ),
    )


STUDY = at_each_scale(study)
