"""The sampler: rows are independent, log-probabilities are the model's, and nothing recompiles."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import scipy.stats
from flax import traverse_util
from hypothesis import assume, given, settings

from rl_llm import prng
from rl_llm.model import ModelConfig, forward, weight_table
from rl_llm.parallel.mesh import MeshShape, make_mesh, over_batch
from rl_llm.prng import Purpose
from rl_llm.sampler import STOP_SLOTS, Sampler, Sampling, cache_spans, compile_sampler, truncate
from rl_llm.types import Prompts, Rollout

N, K, P, T, V = 8, 2, 5, 8, 16
CONFIG = ModelConfig(vocabulary=V, width=16, layers=2, heads=4, kv_heads=2, head_width=4, feed_forward=24)
SHALLOW = replace(CONFIG, layers=1)
STOPS = (3, 5, 11)
KEY = (0, Purpose.ROLLOUT, 4)


def random_params(config: ModelConfig) -> dict:
    draw = np.random.default_rng(0)
    flat = {
        path: ((weight.std or 0.3) * draw.normal(size=weight.shape) + (weight.std == 0)).astype(np.float32)
        for path, weight in weight_table(config).items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


PARAMS = random_params(CONFIG)
DRAW = np.random.default_rng(1)
PROMPTS = Prompts(
    tokens=DRAW.integers(0, V, (N, P), np.int32),
    lengths=np.array([2, 5, 1, 4, 3, 5, 2, 1], np.int32),
    ids=DRAW.integers(0, 2**31, N).astype(np.int32),
)
ONE_DEVICE = make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    """The program shared by most tests: N prompts, K responses, T tokens, one device."""
    return compile_sampler(CONFIG, ONE_DEVICE, K, T)


def drawn(
    sampler: Sampler,
    sampling: Sampling = Sampling(),  # noqa: B008
    stops: tuple[int, ...] = STOPS,
    key: tuple[int, Purpose, int] = KEY,
    params: dict = PARAMS,
    prompts: Prompts = PROMPTS,
) -> Rollout:
    """A rollout as NumPy arrays."""
    return jax.device_get(sampler(params, prompts, prng.key(*key), sampling.values(stops)))  # type: ignore[no-any-return]


compiled_forward = jax.jit(forward, static_argnums=0)


def logits_of(config: ModelConfig, params: dict, rollout: Rollout) -> np.ndarray:
    """f64[B, T, V]: logits before each response token from a plain forward pass over whole rows."""
    (B, T), P = rollout.tokens.shape, rollout.prompts.tokens.shape[1]
    lengths = np.repeat(rollout.prompts.lengths, B // len(rollout.prompts.lengths))
    rows = np.zeros((B, P + T), np.int32)
    rows[:, :P] = np.repeat(rollout.prompts.tokens, B // len(rollout.prompts.lengths), axis=0)
    for row, length, response in zip(rows, lengths, rollout.tokens, strict=True):
        row[length : length + T] = response
    positions = (lengths - 1)[:, None] + np.arange(T)
    logits = np.asarray(compiled_forward(config, params, rows), np.float64)
    return np.take_along_axis(logits, positions[:, :, None], axis=1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def numpy_truncate(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Logits [V] with excluded tokens at -inf."""
    descending = np.sort(logits)[::-1][: sampling.top_k or None]
    probabilities = np.exp(log_softmax(descending))
    before = np.cumsum(probabilities) - probabilities
    nucleus = len(descending) if sampling.top_p == 1 else max(1, int((before < sampling.top_p).sum()))
    kept = logits >= descending[nucleus - 1]
    if sampling.min_p:
        kept &= logits >= descending[0] + np.log(sampling.min_p)
    return np.where(kept, logits, -np.inf)


def sampled_logps(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Log-probabilities [B, T] of the tokens under softmax(logits [B, T, V])."""
    return np.take_along_axis(log_softmax(logits), tokens[:, :, None], axis=2)[:, :, 0]


def test_a_response_ends_with_its_end_token(sampler: Sampler):
    rollout = drawn(sampler)
    for tokens, mask in zip(rollout.tokens, rollout.mask, strict=True):
        ends = np.flatnonzero(np.isin(tokens, STOPS) & (mask > 0))
        length = ends[0] + 1 if ends.size else T
        np.testing.assert_array_equal(mask, np.arange(T) < length)
        np.testing.assert_array_equal(tokens[length:], 0)
    for logp in (rollout.logp, rollout.policy_logp, rollout.model_logp):
        assert (logp[rollout.mask > 0] < 0).all()
        assert (logp[rollout.mask == 0] == 0).all()


def test_truncated_rows_are_those_without_an_end_token(sampler: Sampler):
    rollout = drawn(sampler)
    ended = (np.isin(rollout.tokens, STOPS) & (rollout.mask > 0)).any(axis=1)
    np.testing.assert_array_equal(rollout.truncated, ~ended)
    assert 0 < ended.sum() < N * K


def test_a_row_that_ends_with_the_last_token_is_not_truncated(sampler: Sampler):
    free = drawn(sampler, stops=())
    row = next(b for b in range(N * K) if free.tokens[b, -1] not in free.tokens[b, :-1])
    rollout = drawn(sampler, stops=(int(free.tokens[row, -1]),))
    assert rollout.mask[row].all()
    assert not rollout.truncated[row]


def test_without_stop_ids_every_row_is_full_and_truncated(sampler: Sampler):
    rollout = drawn(sampler, stops=())
    assert rollout.mask.all()
    assert rollout.truncated.all()


def test_a_batch_whose_rows_all_end_at_once_stops_there(sampler: Sampler):
    greedy = Sampling(temperature=0)
    first = drawn(sampler, greedy, stops=()).tokens[:, 0]
    rollout = drawn(sampler, greedy, stops=tuple(map(int, np.unique(first))))
    np.testing.assert_array_equal(rollout.tokens[:, 0], first)
    np.testing.assert_array_equal(rollout.mask, np.arange(T)[None] == np.zeros((N * K, 1)))
    assert not rollout.tokens[:, 1:].any()
    assert not rollout.truncated.any()


def test_a_rows_sample_does_not_depend_on_its_batch(sampler: Sampler):
    """Other neighbours, order, number of prompts and padding give the same tokens."""
    whole, chosen = drawn(sampler), [6, 1, 3]
    wider = np.full((3, P + 2), 7, np.int32)
    wider[:, :P] = PROMPTS.tokens[chosen]
    part = drawn(sampler, prompts=Prompts(wider, PROMPTS.lengths[chosen], PROMPTS.ids[chosen]))
    rows = [index * K + sample for index in chosen for sample in range(K)]
    np.testing.assert_array_equal(part.tokens, whole.tokens[rows])
    np.testing.assert_allclose(part.logp, whole.logp[rows], atol=1e-5)


def test_a_rows_sample_does_not_depend_on_its_place(sampler: Sampler):
    backwards = drawn(sampler, prompts=jax.tree.map(lambda x: x[::-1], PROMPTS))
    expected = drawn(sampler).tokens.reshape(N, K, T)[::-1]
    np.testing.assert_array_equal(backwards.tokens.reshape(N, K, T), expected)


def test_draws_share_noise_with_no_other_step_purpose_seed_sample_or_position(sampler: Sampler):
    """A model with uniform logits shows the noise itself."""
    blind = PARAMS | {"final_norm": np.zeros_like(PARAMS["final_norm"])}
    keys = [KEY, (0, Purpose.ROLLOUT, 5), (0, Purpose.EVALUATION, 4), (1, Purpose.ROLLOUT, 4)]
    tokens = np.stack([drawn(sampler, stops=(), key=key, params=blind).tokens for key in keys])
    draws = tokens.reshape(len(keys), N, K, T)
    for axis, what in enumerate(("key", "problem", "sample", "position")):
        pairs = draws == np.roll(draws, 1, axis)
        assert pairs.mean() < 3 / V, what
    again = drawn(sampler, stops=(), params=blind).tokens
    np.testing.assert_array_equal(again, tokens[0])


def test_the_three_log_probabilities_are_those_of_a_plain_forward_pass(sampler: Sampler):
    sampling = Sampling(max_tokens=T, temperature=0.7, top_k=9, top_p=0.8, min_p=0.06)
    rollout = drawn(sampler, sampling)
    logits, mask = logits_of(CONFIG, PARAMS, rollout), rollout.mask
    cut = np.apply_along_axis(numpy_truncate, 2, logits / 0.7, sampling)
    np.testing.assert_allclose(rollout.model_logp, sampled_logps(logits, rollout.tokens) * mask, atol=1e-5)
    np.testing.assert_allclose(rollout.policy_logp, sampled_logps(logits / 0.7, rollout.tokens) * mask, atol=1e-5)
    logp = np.where(mask > 0, sampled_logps(cut, rollout.tokens), 0.0)
    np.testing.assert_allclose(rollout.logp, logp, atol=1e-5)
    assert (rollout.logp - rollout.policy_logp).max() > 0.1


def test_without_truncation_at_temperature_one_all_three_agree(sampler: Sampler):
    rollout = drawn(sampler)
    np.testing.assert_array_equal(rollout.logp, rollout.policy_logp)
    np.testing.assert_array_equal(rollout.logp, rollout.model_logp)


def test_temperature_zero_takes_the_likeliest_token(sampler: Sampler):
    rollout = drawn(sampler, Sampling(temperature=0), stops=())
    logits = logits_of(CONFIG, PARAMS, rollout)
    np.testing.assert_array_equal(rollout.tokens, logits.argmax(axis=2))
    np.testing.assert_array_equal(rollout.logp, 0.0)
    np.testing.assert_allclose(rollout.model_logp, sampled_logps(logits, rollout.tokens), atol=1e-5)


def test_new_sampling_values_and_stop_ids_compile_nothing(sampler: Sampler):
    drawn(sampler)
    compiled = sampler.program.compilations()
    for stops, sampling in (
        ((), Sampling(temperature=0.5)),
        ((1,), Sampling(temperature=0)),
        ((1, 2), Sampling(top_k=3)),
        (tuple(range(STOP_SLOTS)), Sampling(top_p=0.9, min_p=0.1)),
    ):
        drawn(sampler, sampling, stops, key=(7, Purpose.EVALUATION, len(stops)))
    assert sampler.program.compilations() == compiled


@pytest.fixture(scope="module")
def first_tokens() -> Sampler:
    """One token for each of 1024 responses to a prompt."""
    return compile_sampler(CONFIG, ONE_DEVICE, 1024, 1)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, top_k=6), Sampling(top_p=0.7)])
def test_first_tokens_follow_the_models_distribution(sampler: Sampler, first_tokens: Sampler, sampling: Sampling):
    tokens = drawn(first_tokens, sampling).tokens.reshape(N, 1024)
    logits = logits_of(CONFIG, PARAMS, drawn(sampler))[::K, 0] / sampling.temperature
    for row, said in zip(tokens, logits, strict=True):
        probabilities = np.exp(log_softmax(numpy_truncate(said, sampling)))
        counts = np.bincount(row, minlength=V)
        assert not counts[probabilities == 0].any()
        possible = probabilities > 0
        assert scipy.stats.chisquare(counts[possible], 1024 * probabilities[possible]).pvalue > 1e-3


def test_a_limit_of_one_token_works(first_tokens: Sampler):
    rollout = drawn(first_tokens)
    assert rollout.mask.all()
    np.testing.assert_array_equal(rollout.truncated, ~np.isin(rollout.tokens[:, 0], STOPS))


def test_asking_for_more_responses_or_tokens_does_not_change_the_first_ones(sampler: Sampler, first_tokens: Sampler):
    many = drawn(first_tokens).tokens.reshape(N, 1024)
    np.testing.assert_array_equal(many[:, :K], drawn(sampler).tokens[:, 0].reshape(N, K))


def test_a_generation_of_several_cache_spans_is_that_of_a_plain_forward_pass():
    assert len(cache_spans(80)) > 1
    params = random_params(SHALLOW)
    prompts = jax.tree.map(lambda x: x[:2], PROMPTS)
    rollout = drawn(compile_sampler(SHALLOW, ONE_DEVICE, K, 80), stops=(), params=params, prompts=prompts)
    expected = sampled_logps(logits_of(SHALLOW, params, rollout), rollout.tokens)
    np.testing.assert_allclose(rollout.model_logp, expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_eight_devices_draw_what_one_draws(sampler: Sampler, shape: tuple[int, int, int]):
    mesh = make_mesh(MeshShape(*shape))
    arguments: tuple[Any, ...] = (PARAMS, PROMPTS, prng.key(*KEY), Sampling(top_k=12).values(STOPS))
    spread = compile_sampler(CONFIG, mesh, K, T)(*arguments)
    assert spread.tokens.sharding.is_equivalent_to(over_batch(mesh), 2)
    alone = drawn(sampler, Sampling(top_k=12))
    np.testing.assert_array_equal(spread.tokens, alone.tokens)
    for name in ("logp", "policy_logp", "model_logp"):
        np.testing.assert_allclose(getattr(spread, name), getattr(alone, name), atol=1e-5)


@pytest.mark.parametrize("max_tokens", [*range(1, 130), 1000, 1024, 4097])
def test_cache_spans_grow_to_the_needed_length(max_tokens: int):
    spans = cache_spans(max_tokens)
    assert list(spans) == sorted(set(spans))
    assert spans[-1:] == ((max_tokens - 1,) if max_tokens > 1 else ())
    assert len(spans) <= 4  # each is a loop of its own in the program
    assert all(span > 0 for span in spans)


compiled_truncate = jax.jit(truncate)


@settings(max_examples=150)
@given(
    logits=st.lists(
        st.integers(-6, 6).map(float) | st.floats(-10, 10, width=16), min_size=V, max_size=V
    ),  # integers, so that there are ties
    top_k=st.integers(0, V + 2),
    top_p=st.floats(0.01, 1.0),
    min_p=st.just(0.0) | st.floats(0.001, 1.0),
)
def test_truncate_keeps_what_numpy_keeps(logits: list[float], top_k: int, top_p: float, min_p: float):
    sampling, row = Sampling(top_k=top_k, top_p=top_p, min_p=min_p), np.array(logits)
    descending = np.exp(log_softmax(np.sort(row)[::-1][: top_k or None]))
    assume(np.abs(np.cumsum(descending) - top_p).min() > 1e-5 or top_p == 1)  # where rounding decides
    assume(not min_p or np.abs(row - row.max() - np.log(min_p)).min() > 1e-5)
    found = np.asarray(compiled_truncate(row[None].astype(np.float32), sampling.values(())))[0]
    np.testing.assert_array_equal(found, numpy_truncate(row, sampling))


@pytest.mark.parametrize("sampling", [Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(min_p=1.0)])
def test_the_likeliest_tokens_always_stay(sampling: Sampling):
    logits = np.array([[1.0, 4.0, -2.0, 4.0] * 4], np.float32)
    kept = np.isfinite(np.asarray(compiled_truncate(logits, sampling.values(()))))
    np.testing.assert_array_equal(kept, logits == 4.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, "Sampling.max_tokens=0 is out of range; expected >= 1"),
        ({"temperature": 1e-4}, r"temperature must be 0 \(greedy\) or at least 0.001, not 0.0001"),
        ({"temperature": -0.5}, "temperature=-0.5"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"temperature": 0, "top_k": 5}, "top_k, top_p and min_p cannot act"),
    ],
)
def test_impossible_sampling_values_are_refused(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)


def test_too_many_stop_ids_are_refused():
    with pytest.raises(ValueError, match=f"at most {STOP_SLOTS} stop ids, not {STOP_SLOTS + 1}"):
        Sampling().values(tuple(range(STOP_SLOTS + 1)))


def test_a_limit_truncates_responses_without_recompiling(sampler: Sampler):
    whole = drawn(sampler, stops=())
    compiled = sampler.program.compilations()
    cut = sampler(PARAMS, PROMPTS, prng.key(*KEY), Sampling(T).values((), 3))
    assert sampler.program.compilations() == compiled
    np.testing.assert_array_equal(cut.mask, np.asarray(whole.mask) * (np.arange(T) < 3))
    np.testing.assert_array_equal(cut.tokens[:, :3], np.asarray(whole.tokens)[:, :3])
    assert cut.truncated.all()
