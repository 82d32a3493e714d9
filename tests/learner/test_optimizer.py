"""AdamW: the learning rate schedule, gradient clipping, and the update against NumPy."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_llm.learner.optimizer import AdamW
from rl_llm.model import Lora, ModelConfig, init

PARAMS = {"matrix": np.array([[0.5, -1.0], [2.0, 0.25]], np.float32), "vector": np.array([1.0, -3.0], np.float32)}


def rates(optimizer: AdamW, updates: int) -> np.ndarray:
    """The rate of each of `updates` updates, and of one more."""
    return np.asarray(jax.vmap(optimizer.rate(updates))(np.arange(updates + 1)))


def run(optimizer: AdamW, gradients: list[dict], updates: int = 10) -> tuple[dict, Any]:
    """The parameters and the optimizer's state after an update with each of the gradients."""
    transformation = optimizer.build(updates)
    params, state = PARAMS, transformation.init(PARAMS)
    update = jax.jit(transformation.update)
    for gradient in gradients:
        change, state = update(gradient, state, params)
        params = optax.apply_updates(params, change)
    return params, state


def gradient(seed: int, norm: float) -> dict:
    """A random gradient with this global norm."""
    draw = np.random.default_rng(seed)
    raw = {name: draw.normal(size=value.shape).astype(np.float32) for name, value in PARAMS.items()}
    length = np.sqrt(sum(np.square(x).sum() for x in raw.values()))
    return {name: x * np.float32(norm / length) for name, x in raw.items()}


def test_a_constant_rate_without_warmup():
    np.testing.assert_allclose(rates(AdamW(3e-4), 5), np.full(6, 3e-4), rtol=1e-6)


def test_warmup_rises_in_equal_steps_from_the_first_update():
    np.testing.assert_allclose(rates(AdamW(0.4, warmup_updates=4), 6), [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4], rtol=1e-6)


def test_a_warmup_of_one_update_has_no_effect():
    np.testing.assert_allclose(rates(AdamW(0.4, warmup_updates=1), 3), np.full(4, 0.4), rtol=1e-6)


def test_linear_schedule_falls_from_the_peak_to_its_fraction():
    rate = rates(AdamW(1.0, warmup_updates=2, schedule="linear", final_fraction=0.2), 10)
    np.testing.assert_allclose(rate, [0.5, 1.0, *np.linspace(1.0, 0.2, 9)], rtol=1e-6)


def test_cosine_schedule_falls_from_the_peak_to_its_fraction():
    rate = rates(AdamW(2.0, schedule="cosine", final_fraction=0.1), 8)
    expected = 2.0 * (0.9 * 0.5 * (1 + np.cos(np.pi * np.arange(9) / 8)) + 0.1)
    np.testing.assert_allclose(rate, expected, rtol=1e-6)


def test_the_update_is_adamw_with_the_gradient_clipped_and_the_weights_decayed():
    optimizer = AdamW(0.1, warmup_updates=2, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.3, max_gradient_norm=2.0)
    gradients = [gradient(seed, norm) for seed, norm in enumerate((7.0, 0.5, 2.5))]
    params, _ = run(optimizer, gradients)
    expected = {name: value.astype(np.float64) for name, value in PARAMS.items()}
    first, second = ({name: 0.0 for name in PARAMS} for _ in range(2))
    for index, (raw, norm, rate) in enumerate(zip(gradients, (7.0, 0.5, 2.5), (0.05, 0.1, 0.1), strict=True), 1):
        for name in PARAMS:
            clipped = raw[name] * min(1.0, 2.0 / norm)
            first[name] = 0.8 * first[name] + 0.2 * clipped
            second[name] = 0.9 * second[name] + 0.1 * clipped**2
            direction = first[name] / (1 - 0.8**index) / (np.sqrt(second[name] / (1 - 0.9**index)) + 1e-3)
            expected[name] = expected[name] - rate * (direction + 0.3 * expected[name])
    for name in PARAMS:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5)


def test_bfloat16_moments_are_rounded_float32_moments():
    gradients = [gradient(seed, 1.0) for seed in range(20)]
    exact = AdamW(0.01, beta2=0.95)
    params, state = run(replace(exact, moments_dtype="bfloat16"), gradients)
    expected, unrounded = run(exact, gradients)
    for name in ("mu", "nu"):
        kept, whole = (optax.tree_utils.tree_get(each, name) for each in (state, unrounded))
        assert {x.dtype for x in kept.values()} == {jnp.dtype(jnp.bfloat16)}
        for key in PARAMS:
            size = np.abs(whole[key]).max()
            np.testing.assert_allclose(kept[key].astype(np.float32), whole[key], atol=0.05 * size)
    for key in PARAMS:
        moved, difference = expected[key] - PARAMS[key], params[key] - expected[key]
        assert np.abs(difference).max() < 0.05 * np.abs(moved).max()


def test_the_second_moment_in_bfloat16_falls_again_at_the_largest_beta():
    """When gradients become small. With 0.999 it would never fall, and steps would stay small."""
    with pytest.raises(ValueError, match=r"beta2=0.999: .* would be rounded away; set both to 0.99 at most"):
        AdamW(1e-3, moments_dtype="bfloat16")
    optimizer = AdamW(1e-3, beta2=0.99, moments_dtype="bfloat16")
    _, state = run(optimizer, [gradient(0, 1.0)] + 800 * [gradient(0, 0.1)])
    second = optax.tree_utils.tree_get(state, "nu")
    for key, value in gradient(0, 0.1).items():
        np.testing.assert_allclose(np.sqrt(second[key].astype(np.float32)), np.abs(value), rtol=0.25)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(poison: float):
    optimizer = AdamW(0.1)
    bad = gradient(1, 1.0)
    bad["vector"][0] = poison
    params, state = run(optimizer, [gradient(0, 1.0), bad, gradient(2, 1.0)])
    expected, _ = run(optimizer, [gradient(0, 1.0), gradient(2, 1.0)])
    assert int(state.total_notfinite) == 1
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": -1e-3},
        {"learning_rate": float("inf")},
        {"warmup_updates": -1},
        {"max_gradient_norm": 0.0},
        {"schedule": "linear", "final_fraction": 1.5},
        {"beta1": 1.5},
        {"beta2": 1.0},
        {"eps": -1.0},
        {"weight_decay": float("nan")},
    ],
)
def test_invalid_values_are_refused(values: dict):
    name, value = list(values.items())[-1]
    with pytest.raises(ValueError, match=rf"AdamW.{name}={value} is out of range; expected"):
        AdamW(**{"learning_rate": 1e-3, **values})


@pytest.mark.parametrize("updates", [1, 4])
def test_a_warmup_longer_than_the_run_is_refused(updates: int):
    with pytest.raises(
        ValueError, match=rf"warmup_updates=4 is out of range; expected fewer than the run's {updates} updates"
    ):
        AdamW(1e-3, warmup_updates=4).check(updates)
    AdamW(1e-3, warmup_updates=4).check(5)


def test_a_final_fraction_needs_a_schedule():
    with pytest.raises(ValueError, match=r"final_fraction=0.1 cannot act with schedule='constant'"):
        AdamW(1e-3, final_fraction=0.1)


@pytest.mark.slow
def test_weight_decay_leaves_out_norms_and_biases():
    """In a model with every kind of weight: with a gradient of zero, decay is all that moves a weight."""
    config = ModelConfig(16, qkv_bias=True, output_bias=True, mlp_bias=True, sandwich_norms=True, lora=Lora(2, 2.0))
    params = jax.tree.map(lambda x: jnp.ones_like(x), {"policy": init(config, jax.random.key(0)), "value_head": 1.0})
    optimizer = AdamW(0.1, weight_decay=0.5).build(2)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    moved = {jax.tree_util.keystr(path): float(x.max()) for path, x in jax.tree_util.tree_leaves_with_path(updates)}
    kept = {path for path, change in moved.items() if change == 0.0}
    assert kept == {path for path in moved if "norm" in path or "bias" in path}
    assert all(moved[path] == pytest.approx(-0.05) for path in set(moved) - kept)
    assert len(kept) == 14
    decayed = " ".join(set(moved) - kept)
    assert all(name in decayed for name in ("embedding", "query'", "down'", "up_lora_a", "up_lora_b", "value_head"))
