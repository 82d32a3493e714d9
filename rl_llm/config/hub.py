"""Models of the Hugging Face hub, for messages to people who wrote a model's id instead of a folder."""

import re
from typing import NamedTuple

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name


class Download(NamedTuple):
    """The command that downloads a model, and the folder that it makes."""

    command: str
    folder: str


def download_command(name: object, files: str = "") -> Download | None:
    """How to download a model (or the named files of it, each with a space behind it); None if `name` is no id."""
    if not HUB_ID.fullmatch(str(name)):
        return None
    folder = str(name).rpartition("/")[2].lower()
    return Download(f"hf download {name} {files}--local-dir {folder}", folder)
