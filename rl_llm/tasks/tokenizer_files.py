"""Tokenizer files of a Hugging Face folder, on disk or in a bucket."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from etils import epath

from rl_llm.config.hub import download_command, folder_path

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """Contents of the files.

    `tokenizer` and `sha256` (hex) are of tokenizer.json, `special` tokens by name of tokenizer_config.json, `template`
    of chat_template.jinja or else tokenizer_config.json, and `stop_ids` of generation_config.json.
    """

    tokenizer: tokenizers.Tokenizer
    sha256: str
    special: Mapping[str, str]
    template: str | None
    stop_ids: tuple[int, ...]


def read_files(folder: str | Path) -> TokenizerFiles:
    """Read a folder. Raises FileNotFoundError saying how to get a missing file, ValueError naming a damaged one."""
    path = folder_path(folder)
    if not str(folder) or not path.is_dir():
        hub = download_command(folder)
        way_out = f": {hub.command}, then tokenizer.folder={hub.folder}" if hub else _way_out("DIR")
        raise FileNotFoundError(f"tokenizer.folder={str(folder)!r} is not a folder{way_out}")
    content = _read(path / "tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{path / 'tokenizer.json'} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = _values(path / "tokenizer_config.json")
    _check_added(path, tokenizer, config)
    generation = path / "generation_config.json"
    stop = _values(generation).get("eos_token_id") if generation.is_file() else None
    stop_ids = stop if isinstance(stop, list) else [] if stop is None else [stop]
    if not all(type(token) is int and tokenizer.id_to_token(token) is not None for token in stop_ids):
        raise ValueError(f"{generation}: eos_token_id={stop!r} are not ids of the tokenizer in this folder")
    special = {name: _text(config[name]) for name in SPECIAL if config.get(name) is not None}
    digest = hashlib.sha256(content).hexdigest()
    return TokenizerFiles(tokenizer, digest, special, _template(path, config), tuple(stop_ids))


def _template(folder: epath.Path, config: Mapping[str, Any]) -> str | None:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text()
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _check_added(folder: epath.Path, tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Refuse added tokens that differ between the two files."""
    for number, token in config.get("added_tokens_decoder", {}).items():
        found = tokenizer.token_to_id(_text(token))
        if found != int(number):
            raise ValueError(
                f"{folder}: {_text(token)!r} has id {number} in tokenizer_config.json and {found} in tokenizer.json; "
                "these are files of two tokenizers"
            )


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _values(path: epath.Path) -> Mapping[str, Any]:
    try:
        values = json.loads(_read(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__} instead of a JSON object")
    return values


def _read(path: epath.Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing{_way_out(str(path.parent))}") from error


def _way_out(folder: str) -> str:
    return (
        ": set tokenizer.folder to the folder of a Hugging Face model, or get its files, e.g.\n  hf download "
        f"Qwen/Qwen3-4B-Base tokenizer.json tokenizer_config.json generation_config.json --local-dir {folder}"
    )
