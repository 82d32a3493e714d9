"""Attention: every kernel agrees with the definition."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_llm.model import ModelConfig, SlidingWindow, extend, init, prefill, transformer
from rl_llm.model.attention import KeyValues, fused_attention, kernel_for
from rl_llm.parallel.mesh import MeshShape, make_mesh, replicated
from rl_llm.parallel.programs import compile_program

CONFIG = ModelConfig(vocabulary=16, width=16, layers=2, heads=2, kv_heads=1, head_width=8, feed_forward=8)
DRAW = np.random.default_rng(0)
N, K, P, T = 2, 2, 6, 128
LENGTHS = np.array([6, 3], np.int32)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(DRAW.normal(size=shape), jnp.float32)


QUERIES, OWN = normal(N * K, T, 2, 8), KeyValues(normal(N * K, 1, T, 8), normal(N * K, 1, T, 8))
PROMPT = KeyValues(normal(N, 1, P, 8), normal(N, 1, P, 8))


def plain(queries: jax.Array, own: KeyValues, prompt: KeyValues, window: int | None) -> jax.Array:
    """The definition: softmax attention, row by row."""
    rows = []
    for b in range(queries.shape[0]):
        length = LENGTHS[b // K]
        keys, values = (jnp.concatenate([p[b // K, 0, :length], x[b, 0]]) for p, x in zip(prompt, own, strict=True))
        distance = length + jnp.arange(T)[:, None] - jnp.arange(length + T)[None]
        seen = (distance >= 0) & (distance < (window or length + T))
        logits = jnp.einsum("thd,sd->hts", queries[b], keys, precision="highest") * 8**-0.5
        shares = jax.nn.softmax(jnp.where(seen[None], logits, -jnp.inf), axis=-1)
        rows.append(jnp.einsum("hts,sd->thd", shares, values, precision="highest"))
    return jnp.stack(rows)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
def test_kernels_match_the_definition_in_values_and_gradients(kernel: str, window: int | None) -> None:
    attend = partial(fused_attention, kernel, CONFIG, prompt_lengths=jnp.asarray(LENGTHS), window=window)
    attend = partial(attend, interpret=True)  # the TPU's kernel, run by the interpreter

    def loss(attend: object, queries: jax.Array, own: KeyValues, prompt: KeyValues) -> jax.Array:
        return jnp.sum(jnp.sin(attend(queries, own=own, prompt=prompt)))  # type: ignore[operator]

    found, wanted = (
        jax.jit(jax.value_and_grad(partial(loss, form), argnums=(0, 1, 2)))(QUERIES, OWN, PROMPT)
        for form in (attend, partial(plain, window=window))
    )
    jax.tree.map(partial(np.testing.assert_allclose, atol=5e-5, rtol=1e-5), found, wanted)


def test_kernels_agree_on_padded_rows() -> None:
    valid = jnp.arange(T)[None] < jnp.array([128, 70])[:, None]
    queries, own = QUERIES[:2], jax.tree.map(lambda x: x[:2], OWN)
    found = [
        fused_attention(kernel, CONFIG, queries, own, own_segments=valid.astype(jnp.int32), interpret=True)
        for kernel in ("cudnn", "splash")
    ]
    for b, length in enumerate((128, 70)):
        np.testing.assert_allclose(found[0][b, :length], found[1][b, :length], atol=2e-5)


def test_the_mesh_platform_chooses_the_kernel() -> None:
    assert kernel_for(CONFIG, 4096) is None  # no mesh
    chosen = []

    def note(x: jax.Array) -> jax.Array:
        chosen.append(kernel_for(replace(CONFIG, head_width=128), 4096))
        return x

    compile_program(note, make_mesh(MeshShape(), jax.devices()[:1]))(jnp.zeros(1))
    assert chosen == [None]  # the mesh is of CPUs


@pytest.mark.parametrize("shape", [MeshShape(1, 1, 1), MeshShape(2, 2, 1)])
def test_the_model_computes_the_same_through_a_kernel(shape: MeshShape, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, sliding=SlidingWindow(5, (0,), rope_base=100.0))
    mesh = make_mesh(shape, jax.devices()[: 4 if shape.data == 2 else 1])
    params = jax.device_put(init(config, jax.random.key(0)), replicated(mesh))
    tokens, prompts = DRAW.integers(0, 16, (4, T)), DRAW.integers(0, 16, (4, P))
    lengths = jnp.array([6, 3, 1, 4])

    def read(params: dict) -> jax.Array:
        _, cache = prefill(config, params, prompts, lengths)
        return extend(config, params, tokens, cache, lengths)[0]

    wanted = compile_program(read, mesh)(params)
    monkeypatch.setattr(transformer, "kernel_for", lambda _, queries: "splash" if queries >= T else None)
    monkeypatch.setattr(transformer, "fused_attention", partial(fused_attention, interpret=True))
    np.testing.assert_allclose(compile_program(lambda p: read(p), mesh)(params), wanted, atol=1e-4)
