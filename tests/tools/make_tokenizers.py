"""Make small tokenizers of four families, with the results of Hugging Face transformers on prompts.

Run it in the environment of `make_golden.py`:

    .cache/golden/bin/python tests/tools/make_tokenizers.py tests/data/tokenizers

A folder has a tokenizer's files and expected.json: prompts, their text in the chat template, and their ids. `qwen3` is
the folder of a whole model: a tiny random Qwen3 with a padded vocabulary, as published ones have.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any
from unittest import mock

import golden_cases
import make_golden
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

TEXTS = Path(__file__).parent.parent / "data" / "gsm8k_style.jsonl"
VOCABULARY = 320  # of the byte-level ones, before tokens are added
DATE = "2025-01-31"
MODEL = golden_cases.sizes(32, 2, 4, 2, 64, 352) | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True}
MODEL |= {"rope_parameters": {"rope_theta": 1000000.0}}

QWEN3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- set today = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}
{%- set said = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + today + '\\n\\n' + said + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{% continue %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA3 = """\
{{ bos_token }}
{%- set first = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set first = messages[0]['content'] + '\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + (first if loop.first else '') + message['content'] | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""

R1_DISTILL = """\
{%- set ns = namespace(system='') %}
{%- for message in messages if message.role == 'system' %}{% set ns.system = message.content %}{% endfor %}
{{- bos_token + ns.system }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<｜User｜>' + message.content }}
    {%- elif message.role == 'assistant' %}
        {%- set said = message.content.split('</think>')[-1] %}
        {{- '<｜Assistant｜>' + said + '<｜end▁of▁sentence｜>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<｜Assistant｜><think>\\n' }}
{%- endif %}
"""

PROMPTS = ("What is 5 + 13?", "  Zwölf Äpfel, 3 €\nplus <think>two</think> ", "a<|im_end|>b<end_of_turn>c", "2  +  2")
FIELDS: dict[str, list[dict[str, Any]]] = {
    "qwen3": [{}, {"thinking": False}, {"thinking": True, "system": "Reason step by step."}],
    "llama3": [{"date": DATE}, {"date": DATE, "system": "Answer briefly."}],
    "gemma3": [{}, {"system": "Answer briefly."}],
    "r1_distill": [{}, {"system": "Answer briefly."}],
}


def texts() -> list[str]:
    """Training texts of the tokenizers."""
    lines = [json.loads(line) for line in TEXTS.read_text().splitlines()]
    return [line["question"] + "\n" + line["answer"] for line in lines]


def byte_level(special: list[str], plain: list[str]) -> Tokenizer:
    """Byte-level BPE, as in GPT-2, Qwen and Llama 3; ids 0 to 255 are bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)
    return tokenizer


def byte_fallback(special: list[str], turns: list[str]) -> Tokenizer:
    """SentencePiece BPE, as in Gemma: spaces are a character, unknown characters are split into bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    trained.train_from_iterator(texts(), trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([*special, *turns])
    return tokenizer


def beginning_with(tokenizer: Tokenizer, bos: str) -> None:
    """Put a token before every text."""
    number = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])


def save(folder: Path, tokenizer: Tokenizer, special: dict[str, str], stop: list[str], beside: dict[str, str]) -> None:
    """Write the files of a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(number): {"content": token.content, "special": token.special}
        for number, token in tokenizer.get_added_tokens_decoder().items()
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added, **special}
    if "config" in beside:
        config["chat_template"] = beside["config"]
    if "file" in beside:
        (folder / "chat_template.jinja").write_text(beside["file"])
    write(folder / "tokenizer_config.json", config)
    write(folder / "generation_config.json", {"eos_token_id": [tokenizer.token_to_id(token) for token in stop]})


def expected(folder: Path) -> dict[str, Any]:
    """Results of transformers on the prompts, as plain text and in the template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    now = mock.Mock(**{"now.return_value": datetime.datetime.fromisoformat(DATE)})
    cases = []
    for fields in FIELDS[folder.name]:
        system = [{"role": "system", "content": fields["system"]}] if "system" in fields else []
        extra = {"enable_thinking": fields["thinking"]} if "thinking" in fields else {}
        for prompt in PROMPTS:
            messages = [*system, {"role": "user", "content": prompt}]
            with mock.patch("transformers.utils.chat_template_utils.datetime", now):
                said = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **extra)
            ids = tokenizer(said, add_special_tokens=False).input_ids
            cases.append({"fields": {"chat": True, **fields}, "prompt": prompt, "text": said, "ids": ids})
    plain = [{"fields": {}, "prompt": prompt, "ids": tokenizer(prompt).input_ids} for prompt in PROMPTS]
    return {"cases": plain + cases}


def write(path: Path, value: Any) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Make all folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    root: Path = parser.parse_args().folder

    make_golden.save(root / "qwen3", MODEL, seed=0, shard=None, old=False)
    qwen = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"])
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    save(root / "qwen3", qwen, special, ["<|im_end|>", "<|endoftext|>"], {"file": QWEN3})

    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    llama = byte_level(names, [])
    beginning_with(llama, names[0])
    special = {"bos_token": names[0], "eos_token": names[4]}
    save(root / "llama3", llama, special, [names[1], names[4]], {"config": LLAMA3})

    gemma = byte_fallback(["<pad>", "<eos>", "<bos>", "<unk>"], ["<start_of_turn>", "<end_of_turn>"])
    beginning_with(gemma, "<bos>")
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    save(root / "gemma3", gemma, special, ["<eos>", "<end_of_turn>"], {"config": GEMMA3})

    names = ["<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"]
    distilled = byte_level(names, ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"])
    beginning_with(distilled, names[1])
    special = {"bos_token": names[1], "eos_token": names[0], "pad_token": names[0]}
    save(root / "r1_distill", distilled, special, [names[0]], {"config": R1_DISTILL})

    for name in FIELDS:
        write(root / name / "expected.json", expected(root / name))


if __name__ == "__main__":
    main()
