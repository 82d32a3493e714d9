"""Golden adapters: made by PEFT over the golden models, with the logits of the adapted models.

Run it in the environment of `make_golden.py` with peft==0.21.2 added, after that program:

    .cache/golden/bin/python tests/tools/make_adapters.py tests/data/golden
    .cache/golden/bin/python tests/tools/make_adapters.py --check BASE ADAPTER OUT

A folder NAME_adapter holds the files of `save_pretrained` (its base is the folder NAME beside it) and golden.npz:
tokens i32[B,S] right-padded with 0, lengths i32[B], logits f32[B,S,V]. --check writes such a file for any adapter.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import make_golden
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model

CASES: dict[str, dict[str, Any]] = {
    "llama": {"r": 3, "lora_alpha": 12, "target_modules": "all-linear"},
    "qwen3_moe": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "gemma3_scaled": {"r": 2, "lora_alpha": 5, "target_modules": ["o_proj", "gate_proj", "down_proj"]},
}


def make(folder: Path, name: str) -> None:
    """Make the adapters of one golden model, with random B."""
    out = folder / f"{name}_adapter"
    shutil.rmtree(out, ignore_errors=True)
    model = get_peft_model(make_golden.load(folder / name), LoraConfig(task_type="CAUSAL_LM", **CASES[name]))
    draw = torch.Generator().manual_seed(len(name))
    for path, weight in model.named_parameters():
        if "lora_" in path:
            weight.data = torch.randn(weight.shape, generator=draw) * (0.3 if "lora_B" in path else 0.2)
    model.save_pretrained(out)
    (out / "README.md").unlink()
    fields = json.loads((out / "adapter_config.json").read_text())
    fields |= {"base_model_name_or_path": f"../{name}", "target_modules": sorted(fields["target_modules"])}
    (out / "adapter_config.json").write_text(json.dumps(fields, indent=2) + "\n")
    record(folder / name, out, out / "golden.npz")


def record(base: Path, adapter: Path, out: Path) -> None:
    """Write the logits of a base with adapters, as PEFT loads both."""
    model = PeftModel.from_pretrained(make_golden.load(base), adapter).eval()
    rows = make_golden.prompts(model.config.vocab_size, 0)
    right = make_golden.right_padded(rows)
    with torch.no_grad(), model.disable_adapter():
        unadapted = make_golden.compute_logits(model, *right)
    logits = make_golden.compute_logits(model, *right)
    lengths = np.array([len(row) for row in rows], np.int32)
    print(adapter, "adapters change a logit by", np.abs(logits - unadapted).max(), "of", np.abs(logits).max())
    np.savez_compressed(out, tokens=right[0], lengths=lengths, logits=logits)


def main() -> None:
    """Make all folders, or record one adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--check", type=Path, nargs=3, metavar=("BASE", "ADAPTER", "OUT"))
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    if parsed.check:
        record(*parsed.check)
        return
    for name in CASES:
        make(parsed.folder, name)


if __name__ == "__main__":
    main()
