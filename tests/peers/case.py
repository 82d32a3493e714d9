"""One case of the peer oracles: the batch that our components get for it, and what peers.toml says of it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peer_functions
from catalogue import PARTS, components

from rl_llm.types import Batch, Prompts


@dataclass(frozen=True)
class Case:
    """An entry of oracles.json with the arrays it names, and the size of groups where the entry does not say it."""

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
        """What the peer returned, in its float64 run: float32 rounding is what the tolerance is for."""
        keys = self.entry["outputs"][name]
        return np.asarray(self.arrays[keys["f64"] if isinstance(keys, dict) else keys])


@dataclass(frozen=True)
class Given:
    """The advantage that the batch has already: what is put around it can be looked at alone."""

    def __call__(self, batch: Batch) -> jax.Array:
        return batch.advantage * batch.mask


KINDS = {kind.__name__: kind for modules in PARTS.values() for module in modules for kind in components(module)}


class Names(dict[str, Any]):
    """What an expression of peers.toml may name: our components, a case's parameters; None for those not given."""

    def __missing__(self, name: str) -> None:
        return None


def said(case: Case, entry: peer_functions.Same) -> Any:
    """What of ours is said to return the same as the peer in this case; None if that is said of other cases."""
    if (case.peer, case.function) not in entry.functions:
        return None
    width = next((case.input(name).shape[1] for name in case.entry["inputs"] if name.startswith("mask")), None)
    names = Names({**KINDS, "float": float, "tuple": tuple, "A": Given(), "T": width, **case.params})
    return eval(entry.ours, {"__builtins__": {}}, names)


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
