"""Packing: several whole conversations to a row, and the update that learns such rows.

A row per conversation would be mostly padding. Packing does not change what is learned: `model.read_packed` reads each
conversation as if it were alone.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rl_llm.learner.gradient import apply_gradient, loss_and_gradient
from rl_llm.learner.logprobs import expert_load, predict
from rl_llm.learner.optimizer import Optimizer
from rl_llm.learner.state import PARAMS_ONLY, Update, compile_update
from rl_llm.model import ModelConfig, join_params, read_packed
from rl_llm.parallel.programs import ROWS
from rl_llm.prng import Purpose, generator
from rl_llm.problem import Problem
from rl_llm.types import Mean, Metrics, Packed, TrainState, masked_mean


def first_fit(lengths: Sequence[int] | np.ndarray, row_tokens: int) -> list[list[int]]:
    """Put each conversation into the first row with room for it, in order; returns the indices in each row.

    No conversation may be longer than a row.
    """
    free = np.full(len(lengths), row_tokens, np.int32)
    rows: list[list[int]] = []
    for index, length in enumerate(lengths):
        row = int(np.argmax(free[: len(rows) + 1] >= length))  # the last one is still empty
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        free[row] -= length
    return rows


def rows_from(first: int, lengths: Sequence[int], row_tokens: int, seed: int) -> Iterator[list[int]]:
    """Yield rows of indices without end, from the `first`-th row of a run on.

    Every epoch has all conversations once, in an order given by (seed, epoch), so a resumed run only counts its rows.
    """
    for epoch in itertools.count():
        order = generator(seed, Purpose.DEMONSTRATIONS, epoch).permutation(len(lengths))
        rows = first_fit(np.asarray(lengths)[order], row_tokens)
        for row in rows[first:]:
            yield [int(order[index]) for index in row]
        first = max(first - len(rows), 0)


def pack(conversations: Sequence[Problem], rows: Sequence[Sequence[int]], row_tokens: int) -> Packed:
    """Pack conversations into the rows of a batch, on the host.

    The `metadata` of a conversation has "tokens" i32[n] and "learned" bool[n], true for the assistant's own tokens. All
    learned tokens of the batch have equal weight.
    """
    shape = (len(rows), row_tokens)
    tokens, segments, learned = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for b, row in enumerate(rows):
        end = 0
        for number, index in enumerate(row, 1):
            found = conversations[index].metadata
            place = slice(end, end := end + len(found["tokens"]))
            tokens[b, place], segments[b, place], learned[b, place] = found["tokens"], number, found["learned"]
    return Packed(tokens=tokens, segments=segments, weight=learned / learned.sum())


def packed_loss(config: ModelConfig, params: dict, batch: Packed) -> tuple[jax.Array, Metrics]:
    """Weighted sum of -log pi(token | earlier tokens of its conversation) over a part of a batch, and metrics."""
    hidden, chosen = read_packed(config, params, batch.tokens, batch.segments)
    weight = batch.weight[:, 1:]  # a conversation's first token is never learned
    logp, entropy = predict(config, params, hidden[:, :-1], batch.tokens[:, 1:])
    metrics: Metrics = {"policy/entropy": masked_mean(entropy, (weight > 0).astype(jnp.float32))}
    if chosen is not None and config.experts is not None:
        metrics |= expert_load(chosen, (batch.segments > 0).astype(jnp.float32), config.experts.count)
    return -jnp.sum(weight * logp), jax.lax.stop_gradient(metrics)


def compile_packed_step(config: ModelConfig, optimizer: Optimizer, mesh: Mesh, micro_batches: int = 1) -> Update:
    """Compile one update on packed rows: (state, rows) -> (state, metrics)."""
    static = (config, micro_batches)
    return compile_update(_packed_step, optimizer, config, optimizer, mesh, PARAMS_ONLY, (ROWS,), static)


def _packed_step(
    config: ModelConfig,
    micro_batches: int,
    optimizer: Optimizer,
    state: TrainState,
    batch: Packed,
    frozen: dict | None = None,
) -> tuple[TrainState, Metrics]:
    def loss(trained: dict, part: Packed) -> tuple[jax.Array, Metrics]:
        return packed_loss(config, join_params(trained, frozen), part)

    value, metrics, gradient = loss_and_gradient(loss, state.params, batch, micro_batches)
    params, opt_state, more = apply_gradient(optimizer, state.params, state.opt_state, gradient)
    metrics |= more | {"loss": Mean(value, jnp.float32(1.0))}
    return replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics
