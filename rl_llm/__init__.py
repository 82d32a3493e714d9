"""rl_llm: reinforcement learning of language-model reasoning in pure-functional JAX. Start reading at `train_rl.py`."""

__version__ = "0.1.0"
