"""Renderings of a spec: shell commands and their input file, to print or to run."""

import shlex
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

FOLDER = "runs/launched"  # for written files, in the current folder


class Rendering(Protocol):
    """A job that can be printed and submitted."""

    def text(self) -> str:
        """The job as a script."""

    def obstacle(self) -> str | None:
        """The reason and remedy if it cannot be submitted from this machine; None if it can."""

    def submit(self) -> int:
        """Submit the job; returns 0 or the exit code of the command that failed."""


@dataclass(frozen=True)
class Commands:
    """Commands that run in order until one fails, and a file that is written before them, if any.

    `tools` must be on PATH. `login`, if given, is a command that prints something only if there are credentials.
    `install` and `sign_in` tell the user how to get the tools and the credentials.
    """

    commands: tuple[tuple[str, ...], ...]
    tools: tuple[str, ...]
    install: str
    file: str | None = None
    file_text: str = ""
    login: tuple[str, ...] = ()
    sign_in: str = ""

    def text(self) -> str:
        """The equivalent script, to paste into a shell."""
        lines = [shell_line(command) for command in self.commands]
        if self.file is not None:
            lines[:0] = [f"mkdir -p {FOLDER}", f"cat > {self.file} <<'END_OF_FILE'\n{self.file_text}END_OF_FILE"]
        return "\n".join(lines)

    def obstacle(self) -> str | None:
        """A missing tool or missing credentials."""
        for tool in self.tools:
            if shutil.which(tool) is None:
                return f"{tool} is not on PATH: {self.install}"
        if self.login:
            answer = subprocess.run(self.login, capture_output=True, text=True, check=False)
            if answer.returncode != 0 or not answer.stdout.strip():
                return f"no credentials (`{shell_line(self.login)}` names none): {self.sign_in}"
        return None

    def submit(self) -> int:
        """Write the file into the current folder and run the commands."""
        if self.file is not None:
            Path(FOLDER).mkdir(parents=True, exist_ok=True)
            Path(self.file).write_text(self.file_text)
        for command in self.commands:
            if code := subprocess.run(command, check=False).returncode:
                return code
        return 0


def as_yaml(value: dict[str, Any]) -> str:
    """YAML in the value's order, with literal blocks for texts of several lines."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=1000)


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def shell_line(command: Iterable[str]) -> str:
    """A command as a shell line, with the necessary quotes."""
    return shlex.join(command)
