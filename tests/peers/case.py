"""One case of the peer oracles, and the batch that our components get for it."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from rl_llm.types import Batch, Prompts


@dataclass(frozen=True)
class Case:
    """An entry of oracles.json with the arrays it names."""

    entry: dict[str, Any]
    arrays: Any

    @property
    def name(self) -> str:
        return str(self.entry["name"])

    @property
    def peer(self) -> str:
        return str(self.entry["peer"])

    @property
    def function(self) -> str:
        return str(self.entry["function"])

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.entry["params"])

    @property
    def tolerance(self) -> float:
        return float(self.entry["suggested_atol_f32"])

    def input(self, name: str) -> np.ndarray:
        """An input by the case's own name for it."""
        return np.asarray(self.arrays[self.entry["inputs"][name]])

    def has(self, name: str) -> bool:
        return name in self.entry["inputs"]

    def output(self, name: str) -> np.ndarray:
        """What the peer returned, in its float64 run: float32 rounding is what the tolerance is for."""
        keys = self.entry["outputs"][name]
        return np.asarray(self.arrays[keys["f64"] if isinstance(keys, dict) else keys])


def batch(mask: np.ndarray, responses_per_prompt: int, **fields: Any) -> Batch:
    """A batch of rows stored group by group; what a case does not say is 0 (log-probabilities, advantage, reward)."""
    B, T = mask.shape
    N = B // responses_per_prompt
    zeros = jnp.zeros((B, T), jnp.float32)
    given = {name: jnp.asarray(value) for name, value in fields.items()}
    standing = {
        "prompts": Prompts(jnp.zeros((N, 1), jnp.int32), jnp.ones(N, jnp.int32), jnp.arange(N)),
        "tokens": zeros.astype(jnp.int32),
        "mask": jnp.asarray(mask, jnp.float32),
        "truncated": jnp.zeros(B, bool),
        "old_logp": zeros,
        "sampler_logp": zeros,
        "reward": jnp.zeros(B, jnp.float32),
        "kept": jnp.ones(B, bool),
        "advantage": zeros,
        "weight": zeros,
    }
    return Batch(**(standing | given))
