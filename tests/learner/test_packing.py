"""Packed rows: each conversation is learned as if it were alone, once per epoch."""

from dataclasses import replace
from functools import partial
from itertools import islice

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from test_model import GROUPED, OTHERS, V, random_params

from rl_llm.learner.gradient import loss_and_gradient
from rl_llm.learner.packing import first_fit, pack, packed_loss, rows_from
from rl_llm.model import ModelConfig, SlidingWindow, forward, read_packed, transformer, unembed
from rl_llm.model.attention import fused_attention
from rl_llm.parallel.mesh import MeshShape, make_mesh, replicated
from rl_llm.parallel.programs import compile_program
from rl_llm.problem import Problem
from rl_llm.types import Metrics, Packed

DRAW = np.random.default_rng(0)
LENGTHS, ROWS, S = (4, 7, 2, 5, 3), ((0, 1), (2, 3, 4)), 12
TEXTS = [DRAW.integers(0, V, n).astype(np.int32) for n in LENGTHS]
LEARNED = [np.arange(n) >= min(n - 1, 2) for n in LENGTHS]
CONVERSATIONS = [
    Problem(n, "", "", metadata={"tokens": tokens, "learned": learned})
    for n, (tokens, learned) in enumerate(zip(TEXTS, LEARNED, strict=True))
]
BATCH = pack(CONVERSATIONS, ROWS, S)
LAYER = replace(GROUPED, layers=1, head_width=8, sliding=SlidingWindow(3, (0,), rope_base=50.0))


@partial(jax.jit, static_argnums=2)
def read(params: dict, batch: Packed, micro_batches: int) -> tuple[jax.Array, Metrics, dict]:
    """Loss, metrics and gradient of one layer."""
    return loss_and_gradient(partial(packed_loss, LAYER), params, batch, micro_batches)


def alone(config: ModelConfig, params: dict) -> list[jax.Array]:
    """Logits of each conversation in its own row."""
    rows = np.zeros((len(TEXTS), max(LENGTHS)), np.int32)
    for row, tokens in zip(rows, TEXTS, strict=True):
        row[: len(tokens)] = tokens
    logits = forward(config, params, jnp.asarray(rows), jnp.asarray(LENGTHS))
    return [logits[n, :length] for n, length in enumerate(LENGTHS)]


def places() -> list[tuple[int, slice]]:
    """Row and slots of each conversation."""
    found = {}
    for b, row in enumerate(ROWS):
        end = 0
        for index in row:
            found[index] = (b, slice(end, end := end + LENGTHS[index]))
    return [found[index] for index in range(len(LENGTHS))]


@pytest.mark.parametrize("config", [GROUPED, OTHERS], ids=["Qwen3's kind", "Gemma3's kind, and experts"])
def test_a_packed_conversation_has_the_logits_it_has_alone(config: ModelConfig):
    params = random_params(config)

    def both(params: dict) -> tuple[jax.Array, list[jax.Array]]:
        hidden, _ = read_packed(config, params, BATCH.tokens, jnp.asarray(BATCH.segments))
        return unembed(config, params, hidden), alone(config, params)

    found, wanted = jax.jit(both)(params)
    for (row, place), logits in zip(places(), wanted, strict=True):
        np.testing.assert_allclose(found[row, place], logits, atol=2e-5)


def test_loss_and_gradient_are_those_of_the_conversations_alone():
    def by_definition(params: dict) -> jax.Array:
        losses = [
            -jnp.sum(jax.nn.log_softmax(logits[:-1])[np.arange(len(tokens) - 1), tokens[1:]] * learned[1:])
            for logits, tokens, learned in zip(alone(LAYER, params), TEXTS, LEARNED, strict=True)
        ]
        return sum(losses, jnp.float32(0)) / np.sum(np.concatenate(LEARNED))

    params = random_params(LAYER)
    wanted = jax.jit(jax.value_and_grad(by_definition))(params)
    for micro_batches in (1, 2):
        value, metrics, gradient = read(params, BATCH, micro_batches)
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4), (value, gradient), wanted)
        assert metrics["policy/entropy"].count == np.sum(np.concatenate(LEARNED))


@pytest.mark.parametrize(("kernel", "devices"), [pytest.param("splash", 2, marks=pytest.mark.slow), ("cudnn", 1)])
def test_kernels_keep_conversations_apart(kernel: str, devices: int, monkeypatch: pytest.MonkeyPatch):
    mesh = make_mesh(MeshShape(devices), jax.devices()[:devices])
    params = jax.device_put(random_params(LAYER), replicated(mesh))
    wider = pack(CONVERSATIONS, ROWS, 130)  # no multiple of the kernel's block
    wanted = read(random_params(LAYER), BATCH, 1)
    monkeypatch.setattr(transformer, "kernel_for", lambda _, queries: kernel)
    monkeypatch.setattr(transformer, "fused_attention", partial(fused_attention, interpret=True))
    found = compile_program(lambda p: loss_and_gradient(partial(packed_loss, LAYER), p, wider, 1), mesh)(params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), found, wanted)


def test_a_row_has_the_tokens_segments_and_weights_of_its_conversations():
    np.testing.assert_array_equal(BATCH.segments, [[1] * 4 + [2] * 7 + [0], [1] * 2 + [2] * 5 + [3] * 3 + [0] * 2])
    assert BATCH.weight.sum() == pytest.approx(1.0)
    assert set(BATCH.weight[BATCH.weight > 0]) == {np.float32(1 / np.sum(np.concatenate(LEARNED)))}
    for (row, place), tokens, learned in zip(places(), TEXTS, LEARNED, strict=True):
        np.testing.assert_array_equal(BATCH.tokens[row, place], tokens)
        np.testing.assert_array_equal(BATCH.weight[row, place] > 0, learned)


def test_first_fit_takes_the_first_row_with_room():
    assert first_fit([5, 6, 4, 3, 1, 9], 10) == [[0, 2, 4], [1, 3], [5]]


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40), first=st.integers(0, 60), seed=st.integers(0, 9))
def test_every_epoch_has_every_conversation_once_also_after_a_resume(lengths: list[int], first: int, seed: int):
    rows = list(islice(rows_from(0, lengths, 20, seed), 80))
    assert list(islice(rows_from(first, lengths, 20, seed), 20)) == rows[first : first + 20]
    assert all(sum(lengths[index] for index in row) <= 20 for row in rows)
    taken, epoch = [], []
    for row in rows:
        taken += row
        if len(taken) == len(lengths):  # an epoch ends with a row
            epoch.append(sorted(taken))
            taken = []
    assert epoch
    assert all(indices == list(range(len(lengths))) for indices in epoch)


def test_seed_and_epoch_decide_the_order():
    lengths = [10] * 30
    orders = [
        [row[0] for row in islice(rows_from(first, lengths, 10, seed), 30)] for first, seed in ((0, 0), (30, 0), (0, 1))
    ]
    assert len({tuple(order) for order in orders}) == 3
