"""What the tokenizer files of a Hugging Face folder say. The folder is on a disk or in a bucket."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from etils import epath

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """tokenizer.json as a tokenizer, and its SHA-256 (hex); from tokenizer_config.json the special tokens by name and
    the chat template (that of chat_template.jinja if it is there); from generation_config.json the ids that end a
    response.
    """

    tokenizer: tokenizers.Tokenizer
    sha256: str
    special: Mapping[str, str]
    template: str | None
    stop_ids: tuple[int, ...]


def read_files(folder: str | Path) -> TokenizerFiles:
    """Raises FileNotFoundError saying how to get a file that is missing, ValueError naming one that is damaged."""
    path = epath.Path(folder)
    if not str(folder) or not path.is_dir():
        raise FileNotFoundError(f"tokenizer.folder={str(folder)!r} is no folder{_way_out('DIR')}")
    content = _read(path / "tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"{path / 'tokenizer.json'} is no tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = _values(path / "tokenizer_config.json")
    _check_added(path, tokenizer, config)
    generation = path / "generation_config.json"
    stop = _values(generation).get("eos_token_id") if generation.is_file() else None
    stop_ids = stop if isinstance(stop, list) else [] if stop is None else [stop]
    if not all(type(token) is int and tokenizer.id_to_token(token) is not None for token in stop_ids):
        raise ValueError(f"{generation}: eos_token_id={stop!r} are no ids of the tokenizer beside it")
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
    """The added tokens stand in both files: they must be the same ones."""
    for number, token in config.get("added_tokens_decoder", {}).items():
        found = tokenizer.token_to_id(_text(token))
        if found != int(number):
            raise ValueError(
                f"{folder}: {_text(token)!r} has id {number} in tokenizer_config.json, but {found} in tokenizer.json: "
                "these are files of two tokenizers"
            )


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _values(path: epath.Path) -> Mapping[str, Any]:
    try:
        values = json.loads(_read(path))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__} instead of a JSON object")
    return values


def _read(path: epath.Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no {path}{_way_out(str(path.parent))}") from error


def _way_out(folder: str) -> str:
    return (
        ": set tokenizer.folder to the folder of a Hugging Face model, or get its files, e.g.\n  hf download "
        f"Qwen/Qwen3-4B-Base tokenizer.json tokenizer_config.json generation_config.json --local-dir {folder}"
    )
