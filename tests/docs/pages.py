"""The documents of the repository: their code blocks, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "launch" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
TYPED = ("", "sh", "bash")  # languages of blocks that hold commands


@dataclass(frozen=True)
class Block:
    """A fenced block: the language after the fence, and the text."""

    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command: environment variables before it, and its words."""

    environment: dict[str, str]
    words: list[str]

    def __str__(self) -> str:
        return shlex.join(self.words)


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def command(line: str) -> Command:
    """A line of a shell, without its comment."""
    words = shlex.split(line, comments=True)
    variables = 0
    while variables < len(words) and re.fullmatch(r"[A-Z][A-Z_]*=.*", words[variables], re.DOTALL):
        variables += 1
    return Command(dict(word.split("=", 1) for word in words[:variables]), words[variables:])  # type: ignore[arg-type]


def typed(page: Path) -> list[Command]:
    """Every command in the blocks of a page, in order."""
    texts = [block.text.replace("\\\n", " ") for block in blocks(page) if block.language in TYPED]
    lines = [line for text in texts for line in re.findall(r'^(?:[^"\n]*"[^"]*"[^"\n]*|[^\n]+)$', text, re.MULTILINE)]
    return [found for line in lines if (found := command(line)) != Command({}, [])]


def named(page: Path) -> list[Command]:
    """Every command within a sentence: in backquotes, and begun with a program and a word after it."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    spans = (span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text))
    return [command(span) for span in spans if re.match(r"(\.venv/bin/)?(rl-llm|make|python|pip) [\w\[\".-]", span)]
