"""Golden data: tiny random models of each family, saved and run by Hugging Face transformers.

Run it in an environment of its own (CPU wheels; it imports nothing of rl_llm):

    python3 -m venv .cache/golden
    .cache/golden/bin/pip install torch==2.13.0 transformers==5.24.0 safetensors jinja2
    .cache/golden/bin/python tests/tools/make_golden.py tests/data/golden
    .cache/golden/bin/python tests/tools/make_golden.py OTHER_FOLDER --random 12 --seed 1

A folder holds the files of `save_pretrained`, golden.json (versions, and margins of the choices) and golden.npz:

    tokens i32[B,S]     ragged prompts, right-padded with 0      lengths i32[B]
    logits f32[B,S,V]   in float32, 0 at padding                 logits_bf16   logits of the model in bfloat16
    left_tokens, left_logits                                     the same prompts left-padded, positions from the mask
    generated i32[B,G]  greedy continuation without a stop token
    expert_tokens i32[L,E] (mixture of experts)                  prompt tokens that a layer sends to each expert

Prompts are drawn until rounding cannot change any greedy token or choice of experts.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import golden_cases
import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

LENGTHS = (17, 10, 5, 1)
GENERATED = 12
TOKEN_MARGIN, EXPERT_MARGIN = 1e-2, 0.04  # smallest logit gap between the chosen and the next best
DRAWS = 2000


def main() -> None:
    """Make every case, replacing its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--random", type=int, default=0, metavar="N", help="make N random configurations instead")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random configurations and all weights")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    cases = golden_cases.CASES, golden_cases.SHARDED, golden_cases.OLD_SPELLING
    if parsed.random:
        cases = golden_cases.random_cases(parsed.seed, parsed.random)
    for name, fields in cases[0].items():
        folder = parsed.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        save(folder, fields, parsed.seed, cases[1].get(name), name in cases[2])
        print(name, json.dumps(record(folder, parsed.seed)))


def save(folder: Path, fields: dict[str, Any], seed: int, shard: str | None, old: bool) -> None:
    """Save a model with random weights in `folder`."""
    fields = dict(fields)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw = torch.Generator().manual_seed(seed)
    centred = config.model_type == "gemma3_text"  # its norms multiply by 1 + weight
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=draw)
        if weight.ndim > 1:
            gain = 1.0 if "embed" in name else 2.0 if ".gate.weight" in name else 1.2
            noise *= gain / (1.0 if "embed" in name else weight.shape[-1] ** 0.5)
        else:
            noise = 0.3 * noise + (1.0 if "norm" in name and not centred else 0.0)
        weight.data = noise
    model.tie_weights()
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    if old:
        reference = compute_logits(load(folder), *right_padded(prompts(config.vocab_size, 0)))
        rewrite(folder / "config.json")
        again = compute_logits(load(folder), *right_padded(prompts(config.vocab_size, 0)))
        assert np.array_equal(reference, again), "the old spelling gives other logits"


def rewrite(path: Path) -> None:
    """Rewrite config.json as older versions of transformers wrote it, with the fields of published models."""
    config = json.loads(path.read_text())
    scaling = rope = config.pop("rope_parameters")
    layers = config.pop("layer_types", None)
    if config["model_type"] == "gemma3_text":
        config |= {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"], "cache_implementation": "hybrid"}
        config["sliding_window_pattern"] = layers.index("full_attention") + 1
        scaling = rope["full_attention"]
        del config["_sliding_window_pattern"], config["use_bidirectional_attention"]
        if config["tie_word_embeddings"]:
            del config["tie_word_embeddings"]  # this family's default
    elif config["model_type"].startswith("qwen"):
        config |= {"use_sliding_window": False, "sliding_window": 8}  # present but without effect
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.0"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load a folder with transformers. Only eager attention supports soft-capping, only eager experts any width."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def prompts(vocabulary: int, draw: int) -> list[np.ndarray]:
    """Prompts of the lengths above. Token 0 occurs in them: only the mask tells padding."""
    generator = np.random.default_rng(draw)
    return [generator.integers(vocabulary, size=length, dtype=np.int32) for length in LENGTHS]


def right_padded(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """tokens i32[B,S] and mask bool[B,S]."""
    width = max(map(len, rows))
    tokens = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    return tokens, np.stack([np.arange(width) < len(row) for row in rows])


def left_padded(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """tokens i32[B,S] and mask bool[B,S]."""
    tokens, mask = right_padded([row[::-1] for row in rows])
    return tokens[:, ::-1].copy(), mask[:, ::-1].copy()


def model_inputs(tokens: np.ndarray, mask: np.ndarray) -> dict[str, torch.Tensor]:
    """Arguments of a model call; positions count unmasked tokens."""
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    values = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
    return {name: torch.from_numpy(value.astype(np.int64)) for name, value in values.items()}


@torch.no_grad()
def compute_logits(model: Any, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits f32[B,S,V], 0 at padding."""
    logits = model(**model_inputs(tokens, mask), use_cache=False).logits
    return np.where(mask[:, :, None], logits.float().numpy(), np.float32(0))


@torch.no_grad()
def routing(model: Any, tokens: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, float]:
    """Experts of each prompt token bool[L,tokens,E], and the smallest router-logit gap to an expert not chosen."""
    outputs = model(**model_inputs(tokens, mask), use_cache=False, output_router_logits=True)
    chosen = model.config.num_experts_per_tok
    logits = torch.stack(outputs.router_logits).float().numpy()[:, mask.reshape(-1)]
    ordered = -np.sort(-logits, axis=-1)
    all_chosen = chosen == logits.shape[-1]
    margin = np.inf if all_chosen else float((ordered[..., chosen - 1] - ordered[..., chosen]).min())
    return logits >= ordered[..., chosen - 1 : chosen], margin


@torch.no_grad()
def greedy_continuations(model: Any, rows: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Greedy continuations i32[B,G], row by row without padding or cache, and their smallest logit gap."""
    generated, margin = [], np.inf
    for row in rows:
        tokens = row.astype(np.int64).tolist()
        for _ in range(GENERATED):
            best = torch.topk(model(torch.tensor([tokens]), use_cache=False).logits[0, -1], 2)
            tokens.append(int(best.indices[0]))
            margin = min(margin, float(best.values[0] - best.values[1]))
        generated.append(tokens[-GENERATED:])
    return np.array(generated, np.int32), margin


def stable_prompts(model: Any, rounded: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The first random prompts with greedy tokens and experts that rounding cannot change."""
    experts = hasattr(model.config, "num_experts")
    for draw in range(DRAWS):
        rows = prompts(model.config.vocab_size, draw)
        found: dict[str, Any] = {"draw": draw}
        if experts:
            chosen, margin = routing(model, *right_padded(rows))
            same = np.array_equal(chosen, routing(rounded, *right_padded(rows))[0])
            if margin < EXPERT_MARGIN or not same:
                continue
            found |= {"clear_experts": margin if np.isfinite(margin) else None}
        found["clear_tokens"] = greedy_continuations(model, rows)[1]
        if found["clear_tokens"] >= TOKEN_MARGIN:
            return rows, found
    raise RuntimeError(f"no stable prompts in {DRAWS} draws; try another seed")


def record(folder: Path, seed: int) -> dict[str, Any]:
    """Write golden.npz and golden.json; return the content of the latter."""
    model, rounded = load(folder), load(folder, torch.bfloat16)
    rows, found = stable_prompts(model, rounded)
    right, left = right_padded(rows), left_padded(rows)
    arrays = {
        "tokens": right[0],
        "lengths": np.array(LENGTHS, np.int32),
        "logits": compute_logits(model, *right),
        "left_tokens": left[0],
        "left_logits": compute_logits(model, *left),
        "logits_bf16": compute_logits(rounded, *right),
        "generated": greedy_continuations(model, rows)[0],
    }
    if hasattr(model.config, "num_experts"):
        arrays["expert_tokens"] = routing(model, *right)[0].sum(axis=1).astype(np.int32)
    check(model, rows, arrays)
    np.savez_compressed(folder / "golden.npz", **arrays)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    bf16_error = float(np.abs(arrays["logits"] - arrays["logits_bf16"]).max())
    scale = float(arrays["logits"].std(where=right[1][:, :, None]))
    summary = {**versions, "seed": seed, **found, "logits_deviation": scale, "bf16_error": bf16_error}
    (folder / "golden.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def check(model: Any, rows: list[np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    """Check that padding does not leak: rows alone, and cached generation of left-padded rows, give the same."""
    for index, row in enumerate(rows):
        alone = compute_logits(model, row[None], np.ones((1, len(row)), bool))[0]
        for padded in (arrays["logits"][index, : len(row)], arrays["left_logits"][index, -len(row) :]):
            np.testing.assert_allclose(padded, alone, rtol=0, atol=2e-5)
    tokens, mask = left_padded(rows)
    inputs = model_inputs(tokens, mask)
    inputs.pop("position_ids")  # `generate` derives them from the mask
    model.generation_config.eos_token_id = None
    cached = model.generate(**inputs, max_new_tokens=GENERATED, do_sample=False, pad_token_id=0)
    assert np.array_equal(cached[:, -GENERATED:].numpy(), arrays["generated"])


if __name__ == "__main__":
    main()
