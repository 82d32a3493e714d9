"""Time one RL step: a rollout and one update by the package's own sampler and learner.

Run:    python experiments/benchmarks/rl_step.py            (float32; --dtype bfloat16; --help for the sizes)

Every row samples exactly --new-tokens tokens (no stop id), rewards are random, and each rollout gets one update. On a
CPU the rows are sharded over one device per core, as with JAX_NUM_CPU_DEVICES: each core works through its own rows
instead of synchronising after every small product. Times are medians over the warm steps, in wall-clock and CPU
seconds. The floor is the time of the model's own FLOPs at the rate of a large matrix product measured in this process;
small products, attention, memory traffic and sampling make up the difference.
"""

import argparse
import json
import os
import resource
import time
from dataclasses import replace
from math import gcd
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl_llm.algorithms import LITE_PPO
from rl_llm.learner.optimizer import AdamW
from rl_llm.learner.state import Draw, init_state
from rl_llm.learner.train_step import Learner, compile_make_batch, compile_train_step
from rl_llm.model import ModelConfig, forward_flops, parameter_count
from rl_llm.parallel.mesh import make_mesh, put_on_batch
from rl_llm.prng import Purpose, key
from rl_llm.sampler import Sampling, compile_sampler
from rl_llm.types import Prompts


def main() -> None:
    """Parse the sizes, run, print a table and, as the last line, JSON."""
    sizes = _sizes()
    jax.config.update("jax_num_cpu_devices", sizes.cpu_devices or gcd(sizes.prompts, os.cpu_count() or 1))
    config = ModelConfig(
        vocabulary=sizes.vocab,
        width=sizes.width,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads or sizes.heads,
        head_width=sizes.head_dim,
        feed_forward=sizes.ffn,
        compute_dtype=sizes.dtype,
    )
    result = measure(config, sizes)
    floor = floors(config, sizes, matmul_rate(sizes.dtype))
    rows = f"{sizes.prompts} x {sizes.responses} rows"
    devices = ", ".join(map(str, jax.devices()))
    print(f"{parameter_count(config):,} parameters, {rows}, {sizes.dtype}, {devices}")
    print(f"matrix product of this machine: {floor['rate'] / 1e9:.0f} GFLOP/s")
    for part in ("generate", "update"):
        seconds, least = result[f"{part}_s"], floor[part]
        print(f"{part:9s} {seconds:.3f} s, floor {least:.3f} s by FLOPs: {least / seconds:.0%} of the machine's rate")
    print(json.dumps(result))


def measure(config: ModelConfig, sizes: argparse.Namespace) -> dict[str, Any]:
    """Medians over `sizes.steps` warm steps, after one that compiles."""
    mesh = make_mesh()
    optimizer = AdamW(1e-4).build(sizes.steps + 1)
    state = init_state(config, optimizer, mesh, Draw(key(0, Purpose.PARAMETERS)))
    draw = np.random.default_rng(0)
    prompts = Prompts(
        tokens=draw.integers(2, config.vocabulary, (sizes.prompts, sizes.prompt_tokens), dtype=np.int32),
        lengths=np.full(sizes.prompts, sizes.prompt_tokens, np.int32),
        ids=np.arange(sizes.prompts, dtype=np.int32),
    )
    prompts = put_on_batch(mesh, prompts)
    rows = sizes.prompts * sizes.responses
    rewards = put_on_batch(mesh, draw.integers(0, 2, rows).astype(np.float32))
    values = Sampling(sizes.new_tokens).values(stop_ids=())
    sample = compile_sampler(config, mesh, sizes.responses, sizes.new_tokens)
    make_batch = compile_make_batch(LITE_PPO, mesh)
    update = compile_train_step(Learner(config, LITE_PPO, optimizer, micro_batches=sizes.micro_batches), mesh)

    clocks: list[tuple[float, ...]] = []
    for step in range(sizes.steps + 1):
        marks = [_clock()]
        rollout = jax.block_until_ready(sample(state.params, prompts, key(0, Purpose.ROLLOUT, step), values))
        marks.append(_clock())
        batch, _ = make_batch(replace(rollout, reward=rewards), {}, None, None)
        state, metrics = update(state, batch, jnp.int32(0), jnp.float32(1.0), None)
        jax.block_until_ready(state)
        marks.append(_clock())
        (w0, c0), (w1, c1), (w2, c2) = marks
        clocks.append((w2 - w0, w1 - w0, w2 - w1, c2 - c0, c1 - c0))
    assert int(rollout.mask.sum()) == rows * sizes.new_tokens
    names = ("step_s", "generate_s", "update_s", "step_cpu_s", "generate_cpu_s")
    return {
        **{name: round(median(column), 4) for name, column in zip(names, zip(*clocks[1:], strict=True), strict=True)},
        "generated_tokens": rows * sizes.new_tokens,
        "compile_s": round(clocks[0][0] - median(column[0] for column in clocks[1:]), 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "agreement_max": float(metrics["agreement/max"].result()),
    }


def floors(config: ModelConfig, sizes: argparse.Namespace, rate: float) -> dict[str, float]:
    """Least seconds for the FLOPs at `rate`. Rollout and update read each prompt once for all its responses."""
    read = sizes.prompts * sizes.prompt_tokens
    responses = sizes.prompts * sizes.responses * sizes.new_tokens
    reading = forward_flops(config, read, sizes.prompt_tokens / 2, logits=sizes.prompts)
    responding = forward_flops(config, responses, sizes.prompt_tokens + sizes.new_tokens / 2)
    return {"rate": rate, "generate": (reading + responding) / rate, "update": 3 * (reading + responding) / rate}


def matmul_rate(dtype: str, size: int = 2048) -> float:
    """FLOP/s of a square matrix product with float32 results, the best of five."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32))
    product(a).block_until_ready()
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def _clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _sizes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"layers": 4, "width": 256, "heads": 4, "kv-heads": 0, "head-dim": 64, "ffn": 768, "vocab": 512}
    defaults |= {"prompts": 8, "responses": 8, "prompt-tokens": 32, "new-tokens": 64, "steps": 6}
    defaults |= {"micro-batches": 1}
    for name, default in defaults.items():
        shown = "as --heads" if name == "kv-heads" else default
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default: {shown}")
    parser.add_argument("--cpu-devices", type=int, default=0, metavar="N", help="default: one per core")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute type")
    return parser.parse_args()


if __name__ == "__main__":
    main()
