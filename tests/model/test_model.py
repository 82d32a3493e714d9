"""The model: every way to read tokens gives the same logits, equal to those of a plain NumPy transformer."""

from dataclasses import replace
from typing import Literal, NamedTuple

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings

from rl_llm.model import (
    Caches,
    Experts,
    Initialization,
    ModelConfig,
    RopeScaling,
    SlidingWindow,
    decode,
    decode_context,
    decoding,
    extend,
    forward,
    forward_flops,
    grow_cache,
    init,
    init_cache,
    parameter_count,
    prefill,
    unembed,
    weight_table,
)

N, K, P, T, V = 3, 2, 5, 6, 13
GROUPED = ModelConfig(vocabulary=V, width=16, layers=2, heads=4, kv_heads=2, head_width=4, feed_forward=24)
CONFIGS = {
    "grouped": GROUPED,
    "full, untied, no qk norm": replace(GROUPED, kv_heads=4, tied_embeddings=False, qk_norm=False, layers=1),
    "one key head, five layers": replace(GROUPED, kv_heads=1, layers=5),
}
OTHERS = replace(
    GROUPED,
    layers=3,
    sliding=SlidingWindow(3, (0, 2), rope_base=50.0),
    rope_scaling=RopeScaling("linear", 4.0),
    experts=Experts(count=3, per_token=2),
    qkv_bias=True,
    output_bias=True,
    sandwich_norms=True,
    unit_offset_norms=True,
    embedding_scale=True,
    logit_softcap=5.0,
    activation="gelu_tanh",
)  # features that Qwen3 lacks; test_huggingface.py compares their logits
LENGTHS = np.array([2, 5, 1], np.int32)
DRAW = np.random.default_rng(0)
PROMPTS = DRAW.integers(0, V, (N, P), np.int32)
RESPONSES = DRAW.integers(0, V, (N * K, T), np.int32)
IN_PROMPT = np.arange(P) < LENGTHS[:, None]


class Readings(NamedTuple):
    """Logits after each response token f32[B, T, V] by three functions, and after each prompt token f32[N, P, V]."""

    forward: jax.Array
    extended: jax.Array
    decoded: jax.Array
    prompt: jax.Array


def whole_rows(prompts: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Each response directly after its prompt i32[B, P + T], padded with 0."""
    rows = np.zeros((N * K, P + T), np.int32)
    for b, response in enumerate(responses):
        length = LENGTHS[b // K]
        rows[b, :length] = prompts[b // K, :length]
        rows[b, length : length + T] = response
    return rows


def read(config: ModelConfig, params: dict, prompts: jax.Array, responses: jax.Array, rows: jax.Array) -> Readings:
    """Read the same tokens as whole rows, as prompts and responses, and as prompts and single tokens."""
    positions = np.repeat(LENGTHS, K)[:, None] + np.arange(T)
    whole = jnp.take_along_axis(forward(config, params, rows), positions[:, :, None], axis=1)
    hidden, cache = prefill(config, params, prompts, jnp.asarray(LENGTHS))
    extended = unembed(config, params, extend(config, params, responses, cache, jnp.asarray(LENGTHS))[0])
    context = decode_context(config, params, jnp.asarray(LENGTHS), cache)

    def step(caches: Caches, now: tuple[jax.Array, jax.Array]) -> tuple[Caches, jax.Array]:
        hidden, caches = decode(config, params, context, now[1], now[0], caches, T)
        return caches, unembed(config, params, hidden)

    _, decoded = jax.lax.scan(step, grow_cache(init_cache(config, N * K, T), T), (jnp.arange(T), responses.T))
    return Readings(whole, extended, jnp.moveaxis(decoded, 0, 1), unembed(config, params, hidden))


@pytest.fixture(scope="module", params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


@pytest.fixture(scope="module", params=[*CONFIGS, "others"])
def any_config(request: pytest.FixtureRequest) -> ModelConfig:
    return OTHERS if request.param == "others" else CONFIGS[request.param]


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """Random parameters from NumPy, with norm scales other than 1 (JAX would compile a program per shape)."""
    draw = np.random.default_rng(seed)
    flat = {
        path: (weight.std or 0.3) * draw.normal(size=weight.shape) + (weight.std == 0)
        for path, weight in weight_table(config).items()
    }
    return traverse_util.unflatten_dict({path: x.astype(np.float32) for path, x in flat.items()}, sep="/")


compiled_read = jax.jit(read, static_argnums=0)


def readings(config: ModelConfig, prompts: np.ndarray = PROMPTS, responses: np.ndarray = RESPONSES) -> Readings:
    rows = whole_rows(prompts, responses)
    return Readings(*map(np.asarray, compiled_read(config, random_params(config), prompts, responses, rows)))


@pytest.mark.slow
def test_prefill_and_extend_give_the_logits_of_forward(any_config: ModelConfig):
    found = readings(any_config)
    np.testing.assert_allclose(found.extended, found.forward, atol=1e-5)


def test_prefill_and_decode_give_the_logits_of_forward(any_config: ModelConfig):
    found = readings(any_config)
    np.testing.assert_allclose(found.decoded, found.forward, atol=1e-5)


@pytest.mark.slow
def test_decoding_as_on_accelerators_gives_the_same_logits(monkeypatch: pytest.MonkeyPatch):
    wanted = readings(OTHERS).decoded
    monkeypatch.setattr(decoding, "platform", lambda: "tpu")
    arguments = (random_params(OTHERS), PROMPTS, RESPONSES, whole_rows(PROMPTS, RESPONSES))
    found = jax.jit(lambda *arguments: read(OTHERS, *arguments))(*arguments)
    np.testing.assert_allclose(found.decoded, wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["layers", "all but products"])
def test_rematerialisation_gives_the_same_gradient(remat: str):
    config, params = CONFIGS["grouped"], random_params(CONFIGS["grouped"])

    def loss(config: ModelConfig, params: dict) -> jax.Array:
        return jnp.sum(jnp.sin(forward(config, params, PROMPTS)))

    def programs(config: ModelConfig) -> tuple[dict, str]:
        compiled = jax.jit(jax.grad(loss, argnums=1), static_argnums=0).lower(config, params).compile()
        return compiled(params), str(jax.make_jaxpr(jax.grad(loss, argnums=1), static_argnums=0)(config, params))

    (wanted, plain), (found, again) = programs(config), programs(replace(config, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, wanted)
    assert "remat" in again
    assert "remat" not in plain


@pytest.mark.slow
def test_rematerialisation_keeps_one_layer_at_a_time():
    config = ModelConfig(vocabulary=8, width=16, layers=8, heads=2, kv_heads=1, head_width=8, feed_forward=128)
    tokens, abstract = np.zeros((4, 32), np.int32), jax.eval_shape(lambda: init(config, jax.random.key(0)))

    def peak_bytes(remat: Literal["nothing", "layers", "all but products"]) -> int:
        changed = replace(config, remat=remat)
        gradient = jax.grad(lambda params: jnp.sum(forward(changed, params, tokens)))
        return int(jax.jit(gradient).lower(abstract).compile().memory_analysis().temp_size_in_bytes)

    whole = peak_bytes("nothing")
    assert peak_bytes("layers") < whole / 6
    assert peak_bytes("all but products") < whole / 3


def test_forward_is_the_transformer_of_the_papers(config: ModelConfig):
    expected = np.stack([numpy_forward(config, random_params(config), row) for row in whole_rows(PROMPTS, RESPONSES)])
    positions = np.repeat(LENGTHS, K)[:, None] + np.arange(T)
    expected = np.take_along_axis(expected, positions[:, :, None], axis=1)
    np.testing.assert_allclose(readings(config).forward, expected, atol=2e-5)
    assert expected.std() > 0.5


def numpy_forward(config: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    """Logits [S, V] of one row in float64, head by head: Qwen3's equations as written."""
    weights = jax.tree.map(lambda x: x.astype(np.float64), params)
    S, h = len(tokens), config.head_width

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale

    def rotate(x: np.ndarray) -> np.ndarray:
        angles = np.arange(S)[:, None] * config.rope_base ** (-2 * np.arange(h // 2) / h)
        turned = (x[:, : h // 2] + 1j * x[:, h // 2 :]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], axis=1)

    x = weights["embedding"][tokens]
    for index in range(config.layers):
        w = {name: stack[index] for name, stack in weights["layers"].items()}
        normed, added = norm(x, w["attention_norm"]), 0.0
        for head in range(config.heads):
            shared = head // (config.heads // config.kv_heads)
            query, key, value = (
                normed @ w["query"][:, head],
                normed @ w["key"][:, shared],
                normed @ w["value"][:, shared],
            )
            if config.qk_norm:
                query, key = norm(query, w["query_norm"]), norm(key, w["key_norm"])
            scores = np.where(np.tri(S), rotate(query) @ rotate(key).T / np.sqrt(h), -np.inf)
            attention = np.exp(scores - scores.max(-1, keepdims=True))
            added += attention / attention.sum(-1, keepdims=True) @ value @ w["output"][head]
        x = x + added
        normed = norm(x, w["mlp_norm"])
        gate = normed @ w["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ w["up"])) @ w["down"]
    return norm(x, weights["final_norm"]) @ weights.get("head", weights["embedding"].T)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), position=st.integers(0, T - 1))
def test_tokens_after_a_position_change_no_bit_before_it(seed: int, position: int):
    draw = np.random.default_rng(seed)
    prompts = np.where(IN_PROMPT, PROMPTS, draw.integers(0, V, PROMPTS.shape)).astype(np.int32)
    responses = RESPONSES.copy()
    responses[:, position + 1 :] = draw.integers(0, V, (N * K, T - position - 1))
    found, expected = readings(GROUPED, prompts, responses), readings(GROUPED)
    np.testing.assert_array_equal(found.prompt[IN_PROMPT], expected.prompt[IN_PROMPT])
    for name in ("forward", "extended", "decoded"):
        np.testing.assert_array_equal(
            getattr(found, name)[:, : position + 1], getattr(expected, name)[:, : position + 1]
        )


def test_a_token_changes_every_later_logit():
    responses = RESPONSES.copy()
    responses[:, 2] = (responses[:, 2] + 1) % V
    found, expected = readings(GROUPED, responses=responses), readings(GROUPED)
    for name in ("forward", "extended", "decoded"):
        changed = np.abs(getattr(found, name) - getattr(expected, name)).max(axis=(0, 2)) > 1e-3
        np.testing.assert_array_equal(changed, np.arange(T) >= 2, err_msg=name)


def test_bfloat16_compute_is_close_to_float32():
    reduced = replace(GROUPED, compute_dtype="bfloat16")
    rows, params = whole_rows(PROMPTS, RESPONSES), random_params(GROUPED)
    found = np.asarray(jax.jit(forward, static_argnums=0)(reduced, params, rows))
    positions = np.repeat(LENGTHS, K)[:, None] + np.arange(T)
    exact = readings(GROUPED).forward
    difference = np.abs(np.take_along_axis(found, positions[:, :, None], axis=1) - exact).max()
    assert found.dtype == np.float32
    assert 1e-4 < difference < 0.1 < np.abs(exact).max()


# Few different shapes: noise of a new shape is a new program.
SQUARE = ModelConfig(vocabulary=16, width=16, layers=2, heads=4, kv_heads=4, head_width=4, feed_forward=16)


@pytest.fixture(scope="module")
def initial() -> list[dict[str, np.ndarray]]:
    """Flat parameters of SQUARE and of a sibling with other weights, from one key."""
    sibling = replace(SQUARE, qk_norm=False, tied_embeddings=False)
    flat = [traverse_util.flatten_dict(init(config, jax.random.key(0)), sep="/") for config in (SQUARE, sibling)]
    return [{path: np.asarray(value) for path, value in params.items()} for params in flat]


def test_parameters_have_the_shapes_and_deviations_of_the_table(initial: list[dict[str, np.ndarray]]):
    assert initial[0].keys() == weight_table(SQUARE).keys()
    for path, weight in weight_table(SQUARE).items():
        value = initial[0][path]
        assert (value.shape, value.dtype) == (weight.shape, np.float32)
        if weight.std == 0:
            np.testing.assert_array_equal(value, 1.0)
        else:
            assert value.std() == pytest.approx(weight.std, rel=0.25), path
            assert np.abs(value).max() <= 3 * weight.std, path


def test_a_weights_initial_value_depends_on_its_path_only(initial: list[dict[str, np.ndarray]]):
    """Weights that two models share start with the same values."""
    common = initial[0].keys() & initial[1].keys()
    assert len(common) == len(initial[0]) - 2 == len(initial[1]) - 1
    for path in common:
        np.testing.assert_array_equal(initial[0][path], initial[1][path], err_msg=path)


def test_no_two_weights_start_alike(initial: list[dict[str, np.ndarray]]):
    matrices = [value.ravel()[:256] for value in initial[1].values() if value.std() > 0]
    assert np.abs(np.corrcoef(matrices) - np.eye(len(matrices))).max() < 0.3


def test_parameters_are_counted(config: ModelConfig):
    D, h = config.width, config.head_width
    layer = D * h * (2 * config.heads + 2 * config.kv_heads) + 3 * D * config.feed_forward + 2 * D
    expected = V * D + D + config.layers * (layer + 2 * h * config.qk_norm)
    assert parameter_count(config) == expected + V * D * (not config.tied_embeddings)
    assert parameter_count(config) == sum(x.size for x in jax.tree.leaves(random_params(config)))


def test_flops_match_the_compilers_count():
    config = ModelConfig(
        vocabulary=512, width=256, layers=2, heads=4, kv_heads=2, head_width=64, feed_forward=768, qk_norm=True
    )
    rows, width = 4, 32
    params = {path: jax.ShapeDtypeStruct(w.shape, np.float32) for path, w in weight_table(config).items()}
    tokens = jax.ShapeDtypeStruct((rows, width), np.int32)
    lowered = jax.jit(forward, static_argnums=0).lower(config, traverse_util.unflatten_dict(params, sep="/"), tokens)
    counted = lowered.compile().cost_analysis()["flops"]
    assert forward_flops(config, tokens=rows * width, context=width) == pytest.approx(counted, rel=0.2)


def test_flops_count_windows_and_the_experts_that_read():
    wide = replace(GROUPED, layers=3)
    windows = replace(wide, sliding=SlidingWindow(5, (0, 1)))
    assert forward_flops(windows, 7, 5) == forward_flops(wide, 7, 5), "a window that holds the whole context"
    one_layer = forward_flops(wide, 7, 100) - forward_flops(windows, 7, 100)
    assert one_layer == 2 * 7 * 2 * wide.heads * wide.head_width * 2 * (100 - 5)
    sparse = replace(wide, experts=Experts(count=9, per_token=2))
    more = forward_flops(sparse, 7, 5) - forward_flops(wide, 7, 5)
    assert more == 2 * 7 * 3 * (3 * wide.width * wide.feed_forward + wide.width * 9)


def test_flops_of_few_logits_leave_out_the_head():
    whole, none = (forward_flops(GROUPED, 10, 5, logits) for logits in (None, 0))
    assert whole - none == 2 * 10 * V * GROUPED.width


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": 0}, "vocabulary=0 is out of range; expected >= 1"),
        ({"layers": -1}, "layers=-1 is out of range; expected >= 1"),
        ({"kv_heads": 3}, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ({"head_width": 5}, "head_width must be even for rotary positions, not 5"),
    ],
)
def test_an_impossible_shape_is_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(GROUPED, **change)


@pytest.mark.parametrize("scheme", ["fan_in", "fixed"])
def test_parameters_have_the_deviation_of_their_initialization(scheme: Literal["fan_in", "fixed"]):
    config = ModelConfig(vocabulary=64, width=64, layers=2)
    once, double = (
        traverse_util.flatten_dict(init(config, jax.random.key(0), Initialization(scheme, scale)), sep="/")
        for scale in (1.0, 2.0)
    )
    for path, weight in weight_table(config).items():
        if weight.std == 0.0:
            np.testing.assert_array_equal(double[path], once[path])
            continue
        np.testing.assert_array_equal(double[path], 2.0 * once[path])
        assert np.std(once[path]) == pytest.approx(0.02 if scheme == "fixed" else weight.std, rel=0.06), path
