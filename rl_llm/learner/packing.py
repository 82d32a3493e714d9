"""Whole conversations as rows: which of them share a row, the arrays, and the update that learns them.

Rows of one length waste no place on padding, where a row of its own for every conversation wastes most of it. What is
learned is the same: `model.packed` reads each conversation as if it were alone.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rl_llm.learner.gradient import apply_gradient, loss_and_gradient
from rl_llm.learner.logprobs import expert_load, predict
from rl_llm.learner.optimizer import Optimizer
from rl_llm.learner.state import PARAMS_ONLY, Update, compile_update
from rl_llm.model import ModelConfig, join_params, packed
from rl_llm.parallel import mesh as meshes
from rl_llm.parallel.numbers import PROGRAMS, Numbers
from rl_llm.prng import Purpose, generator
from rl_llm.problem import Problem
from rl_llm.types import Mean, Metrics, Packed, TrainState, masked_mean


def first_fit(lengths: Sequence[int] | np.ndarray, row_tokens: int) -> list[list[int]]:
    """Each conversation in the first row that has room for it, in their order: the indices in each row. None may be
    longer than a row.
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
    """Endless rows of indices, from the `first`-th row of a run on. In every epoch all conversations come once, in an
    order that (seed, epoch) gives, so a run that goes on counts the rows it had and carries nothing.
    """
    for epoch in itertools.count():
        order = generator(seed, Purpose.DEMONSTRATIONS, epoch).permutation(len(lengths))
        rows = first_fit(np.asarray(lengths)[order], row_tokens)
        for row in rows[first:]:
            yield [int(order[index]) for index in row]
        first = max(first - len(rows), 0)


def pack(conversations: Sequence[Problem], rows: Sequence[Sequence[int]], row_tokens: int) -> Packed:
    """The rows of a batch on the host. `metadata` of a conversation has its "tokens" i32[n], and "learned" bool[n] says
    which of them are the model's own; all of these weigh the same in the whole batch.
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
    """The weighted sum of -log pi(token | those before it in its conversation), and the metrics of a part of a
    batch.
    """
    hidden, chosen = packed(config, params, batch.tokens, batch.segments)
    weight = batch.weight[:, 1:]  # a conversation's first token is never learned
    logp, entropy = predict(config, params, hidden[:, :-1], batch.tokens[:, 1:])
    metrics: Metrics = {"policy/entropy": masked_mean(entropy, (weight > 0).astype(jnp.float32))}
    if chosen is not None and config.experts is not None:
        metrics |= expert_load(chosen, (batch.segments > 0).astype(jnp.float32), config.experts.count)
    return -jnp.sum(weight * logp), jax.lax.stop_gradient(metrics)


def compile_packed_step(config: ModelConfig, optimizer: Optimizer, mesh: Mesh, micro_batches: int = 1) -> Update:
    """One update on a batch of rows, jitted for a mesh: one program for all numbers of the optimizer."""
    numbers = Numbers.of(optimizer)
    return Update(_compile_packed_step(config, numbers.structure, mesh, micro_batches), numbers)


@lru_cache(maxsize=PROGRAMS)
def _compile_packed_step(config: ModelConfig, optimizer: Optimizer, mesh: Mesh, micro_batches: int) -> Any:
    def packed_step(
        numbers: Numbers[Optimizer], state: TrainState, batch: Packed, frozen: dict | None = None
    ) -> tuple[TrainState, Metrics]:
        def loss(trained: dict, part: Packed) -> tuple[jax.Array, Metrics]:
            return packed_loss(config, join_params(trained, frozen), part)

        value, metrics, gradient = loss_and_gradient(loss, state.params, batch, micro_batches)
        params, opt_state, more = apply_gradient(numbers.value, state.params, state.opt_state, gradient)
        metrics |= more | {"loss": Mean(value, jnp.float32(1.0))}
        return replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics

    return compile_update(packed_step, config, optimizer, mesh, PARAMS_ONLY, (meshes.over_batch(mesh),))
