"""rl_llm: reinforcement learning of language-model reasoning in pure-functional JAX. Start reading at `train.py`.

An experiment file imports its parts from these places:

    from rl_llm.experiment import Experiment, Evaluation, WarmStart, ...  # the run, and what it learns from
    from rl_llm.algorithms import LITE_PPO, PPO, Algorithm, Clip, ...     # recipes, and the components to make others
    from rl_llm.model import ModelConfig, Lora, from_folder, ...          # from_folder: sizes of a Hugging Face folder
    from rl_llm.learner.optimizer import AdamW
    from rl_llm.sampler import Sampling
    from rl_llm.rewards.components import Accuracy, Reward
    from rl_llm.parallel.mesh import MeshShape
    from rl_llm.tasks.modular_sum import ModularSum
    from rl_llm.tasks.datasets import JsonlProblems
    from rl_llm.tasks.reasoning_gym import ReasoningGym
    from rl_llm.tasks.tokenizer import CharacterTokenizer
    from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer
    from rl_llm.problem import Problem, Split, problem_id, split_of       # for your own task
"""

__version__ = "0.1.0"
