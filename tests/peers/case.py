"""One case of the peer oracles: its batch for our components, and its entry of peers.toml."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peer_functions
from catalogue import PARTS, components

from rl_llm.algorithms import Advantage
from rl_llm.types import Batch, Prompts


@dataclass(frozen=True)
class Case:
    """Entry of oracles.json with its arrays, and the size of groups if the entry does not have it."""

    entry: dict[str, Any]
    arrays: Any
    responses_per_group: int

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
        """Output of the peer's float64 run; the tolerance covers float32 rounding."""
        keys = self.entry["outputs"][name]
        return np.asarray(self.arrays[keys["f64"] if isinstance(keys, dict) else keys])


@dataclass(frozen=True)
class Given(Advantage):
    """The advantage that the batch already has, to test a wrapper alone."""

    def __call__(self, batch: Batch) -> jax.Array:
        return batch.advantage * batch.mask


KINDS = {kind.__name__: kind for modules in PARTS.values() for module in modules for kind in components(module)}


class Names(dict[str, Any]):
    """Names for an expression of peers.toml: our components and a case's parameters (None if not given)."""

    def __missing__(self, name: str) -> None:
        return None


def said(case: Case, entry: peer_functions.Same) -> Any:
    """Our value that peers.toml equates with the peer in this case; None if it does so for other cases only."""
    if (case.peer, case.function) not in entry.functions:
        return None
    width = next((case.input(name).shape[1] for name in case.entry["inputs"] if name.startswith("mask")), None)
    names = Names({**KINDS, "float": float, "tuple": tuple, "A": Given(), "T": width, **case.params})
    return eval(entry.ours, {"__builtins__": {}}, names)


def batch(mask: np.ndarray, responses_per_prompt: int, **fields: Any) -> Batch:
    """Batch of rows stored group by group; missing log-probabilities, advantage and reward are 0."""
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
