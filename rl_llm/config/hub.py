"""Models of the Hugging Face hub, for messages to people who wrote a model's id or address instead of a folder."""

import re
from pathlib import Path
from typing import NamedTuple

from etils import epath

ADDRESS = re.compile(r"(?:https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/|hf:/+)(?:models/)?", re.IGNORECASE)
HUB_ID = re.compile(r"((?!datasets/|spaces/)\w[\w.-]*/\w[\w.-]*)([/?#].*)?")  # owner/name; an address goes on


class Download(NamedTuple):
    """The command that downloads a model, and the folder that it makes."""

    command: str
    folder: str


def download_command(name: object) -> Download | None:
    """How to download a model by its id or address; None for others, and for a path in a folder that exists."""
    rest = ADDRESS.sub("", str(name), count=1)
    found, address = HUB_ID.fullmatch(rest), rest != str(name)
    if not found or (not address and (found[2] or Path(rest).parent.is_dir())):
        return None
    model = found[1].rpartition("/")[2].lower()
    return Download(f"hf download {found[1]} --local-dir {model}", model)


def folder_path(name: epath.PathLike) -> epath.Path:
    """The path of a folder, on a disk or in a bucket. Raises FileNotFoundError for a web or hub address."""
    if str(name).lower().startswith(("http:/", "https:/", "hf:/")):
        hub = download_command(name)
        remedy = f"{hub.command}, then use the folder {hub.folder}" if hub else "download it and name its folder"
        raise FileNotFoundError(f"{name} is an address, not a folder: {remedy}")
    return epath.Path(name)
