"""The experiment: one value that decides everything a run does, except its seed and its folder."""

from rl_llm.experiment.curriculum import Curriculum, Difficulty, DynamicSampling, Replay, ResponseLength
from rl_llm.experiment.experiment import Checkpointing, Evaluation, Experiment, Grading, Tokenizer
from rl_llm.experiment.sources import (
    Conversations,
    Mixture,
    RewardModel,
    SkillGate,
    StoredResponses,
    Teacher,
    WarmStart,
)
from rl_llm.experiment.suite import Suite
