"""Time one RL step of real model sizes on one accelerator, against its memory and compute limits.

Run:    python experiments/benchmarks/accelerator.py --chip h100      (an H200: h200; --smoke: seconds, on anything)

Random parameters in the shapes of Qwen3 0.6B, 1.7B and 4B; matrix products in bfloat16, parameters and moments in
float32. Decoding is memory-bound: each step reads the weights once (2 bytes each) and every row's cache. `of floor` is
the time of these reads at the chip's bandwidth divided by the measured time. Updates are compute-bound: MFU is the time
of the model's own FLOPs (3 passes, without recomputation) at the chip's rate divided by the measured time. The chips'
figures are in launch/prices.py.

Measured: not yet, for lack of an accelerator.
"""

import argparse
from dataclasses import replace

import jax

from experiments.benchmarks.rl_step import floors, measure
from launch.prices import CHIPS
from rl_llm.model import ModelConfig, families, parameter_count

MODELS = ("QWEN3_0_6B", "QWEN3_1_7B", "QWEN3_4B")
BYTES = 2  # of a bfloat16 number


def main() -> None:
    """Run the models in turn and print a row of a Markdown table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=sorted(CHIPS), default="h100", help="sets the limits (default: h100)")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="models in rl_llm.model.families")
    parser.add_argument("--smoke", action="store_true", help="use two narrow layers and a few tokens")
    for name, default in {"prompts": 8, "responses": 8, "prompt-tokens": 256, "new-tokens": 512, "steps": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default: {default}")
    parser.add_argument("--micro-batches", type=int, default=8, metavar="N", help="default: 8")
    sizes = parser.parse_args()
    if sizes.smoke:
        sizes.prompt_tokens, sizes.new_tokens, sizes.steps = 8, 16, 1
    unknown = [name for name in sizes.models if not isinstance(getattr(families, name, None), ModelConfig)]
    if unknown:
        parser.error(f"rl_llm.model.families has no {', '.join(unknown)}")
    print(f"{jax.devices()[0].device_kind}, {sizes.prompts} x {sizes.responses} rows, {sizes.prompt_tokens} + ", end="")
    print(f"{sizes.new_tokens} tokens, {sizes.micro_batches} micro-batches; floors: {sizes.chip}\n")
    print("| model | parameters | step, s | generate, s | decoded tokens/s | of floor | update, s | MFU |")
    print("|---|---|---|---|---|---|---|---|")
    for name in sizes.models:
        config = replace(getattr(families, name), remat="layers")
        if sizes.smoke:
            config = replace(config, vocabulary=512, width=64, layers=2, heads=4, kv_heads=2, feed_forward=128)
        print(row(name, config, sizes), flush=True)


def row(name: str, config: ModelConfig, sizes: argparse.Namespace) -> str:
    """Measure a model; returns its row of the table."""
    result, chip = measure(config, sizes), CHIPS[sizes.chip]
    rows, mean_context = sizes.prompts * sizes.responses, sizes.new_tokens / 2
    slot = 2 * config.layers * config.kv_heads * config.head_width * BYTES
    prompts = sizes.prompts * sizes.prompt_tokens * slot  # read once for all their responses
    per_step = parameter_count(config) * BYTES + rows * mean_context * slot + prompts
    floor = sizes.new_tokens * per_step / chip.hbm_bandwidth
    least = floors(config, sizes, chip.bf16_flops)["update"]
    figures = (
        f"{parameter_count(config) / 1e9:.2f} B",
        f"{result['step_s']:.2f}",
        f"{result['generate_s']:.2f}",
        f"{result['generated_tokens'] / result['generate_s']:,.0f}",
        f"{floor / result['generate_s']:.0%}",
        f"{result['update_s']:.2f}",
        f"{least / result['update_s']:.0%}",
    )
    return f"| {name} | {' | '.join(figures)} |"


if __name__ == "__main__":
    main()
