"""Write adapters in PEFT's format; `rl_llm.model.huggingface.adapters` reads it."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from rl_llm.export.writing import Dtype, check_same_model, make_writer
from rl_llm.model.config import ModelConfig
from rl_llm.model.huggingface import reading, tensor_files
from rl_llm.model.huggingface.adapters import ADAPTER_WEIGHTS, BASE, MODULES
from rl_llm.model.huggingface.reading import ADAPTER_CONFIG
from rl_llm.model.huggingface.tensor_files import DTYPES
from rl_llm.model.lora import split_flat
from rl_llm.model.weights import weight_table


def save_adapter(
    config: ModelConfig,
    params: dict,
    folder: epath.PathLike,
    base: str,
    dtype: Dtype = "float32",
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model's adapters as a folder that PEFT loads over the Hugging Face folder `base`.

    `beside` has other files. adapter_config.json is written last: a folder without it was cut off. Raises ValueError if
    the folder has files already, the model has no adapters, or `base` has other weights than those beneath them.
    """
    writer, lora = make_writer(config, params, folder, dtype), config.lora
    if lora is None:
        raise ValueError("the model has no adapters: export the model itself")
    check_same_model(config, base, "merge the adapters")
    path = epath.Path(base)
    for name, tensor in reading.match_tensors(path, config.base, tensor_files.read_headers(path)).items():
        if not np.array_equal(writer.value(name).astype(DTYPES[tensor.dtype]), tensor.read()):
            raise ValueError(
                f"{name} beneath the adapters is not that of {base}: they belong to other weights. Merge them: export "
                "the model itself"
            )
    writer.write_file(ADAPTER_WEIGHTS, sorted(reading.stored_shapes(split_flat(config, weight_table(config))[0])))
    values: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", BASE: base, "bias": "none"}
    values |= {"r": lora.rank, "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha}
    values |= {"target_modules": [MODULES[target] for target in lora.targets], "lora_dropout": 0.0}
    for name, content in {**(beside or {}), ADAPTER_CONFIG: (json.dumps(values, indent=2) + "\n").encode()}.items():
        (writer.folder / name).write_bytes(content)
