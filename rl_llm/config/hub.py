"""Models of the Hugging Face hub, for messages to people who wrote a model's id instead of a folder."""

import re
from pathlib import Path
from typing import NamedTuple

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name


class Download(NamedTuple):
    """The command that downloads a model, and the folder that it makes."""

    command: str
    folder: str


def download_command(name: object) -> Download | None:
    """How to download a model; None if `name` is no id, or a path in a folder that exists (a missing run in `runs`)."""
    owner, _, model = str(name).rpartition("/")
    if not HUB_ID.fullmatch(str(name)) or Path(owner).is_dir():
        return None
    return Download(f"hf download {name} --local-dir {model.lower()}", model.lower())
