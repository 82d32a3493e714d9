"""What a renderer makes of a spec: shell commands and the file they read, to be printed or to be run."""

import shlex
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

FOLDER = "runs/launched"  # of the files that are written, in the current folder


class Rendering(Protocol):
    """What would run, and the way to run it."""

    def text(self) -> str:
        """What would run, as a script."""

    def obstacle(self) -> str | None:
        """Why it cannot be submitted from this machine, with the way out; None if it can."""

    def submit(self) -> int:
        """Run it; returns the exit code of what failed, or 0."""


@dataclass(frozen=True)
class Commands:
    """Commands that run one after the other until one fails, with one file that is written before, if any.

    `tools` must be on PATH; `login` is a command that prints something if there are credentials, or none if only the
    commands themselves can tell. `install` says how to get the tools and `sign_in` how to get the credentials.
    """

    commands: tuple[tuple[str, ...], ...]
    tools: tuple[str, ...]
    install: str
    file: str | None = None
    file_text: str = ""
    login: tuple[str, ...] = ()
    sign_in: str = ""

    def text(self) -> str:
        """A script that does the same when pasted into a shell."""
        lines = [shell_line(command) for command in self.commands]
        if self.file is not None:
            lines[:0] = [f"mkdir -p {FOLDER}", f"cat > {self.file} <<'END_OF_FILE'\n{self.file_text}END_OF_FILE"]
        return "\n".join(lines)

    def obstacle(self) -> str | None:
        """A tool that is not there, or credentials that are not."""
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
    """YAML in the order of the value, texts of several lines as they stand."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=1000)


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def shell_line(command: Iterable[str]) -> str:
    """A command as one types it: quoted where it must be."""
    return shlex.join(command)
