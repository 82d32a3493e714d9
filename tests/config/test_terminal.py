"""Nothing that a model or a file wrote acts on the terminal."""

import ast
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

import rl_llm
from rl_llm.config.terminal import make_console, show
from rl_llm.runs.progress import Progress

PACKAGE = Path(rl_llm.__file__).parent
# Clears the screen, sets the title, writes the clipboard, goes back over what was said, turns the reading direction.
HOSTILE = "\x1b[2J\x1b]0;title\x07\x1b]52;c;ZXZpbA==\x07right\rwrong\x08\x9b31m\u202e[link=file:x]gone[/link]\x7f"


def acts(written: str) -> list[str]:
    return [character for character in written if not character.isprintable() and character not in "\n\t"]


@given(st.text())
def test_show_sends_no_control_characters(text: str):
    written = io.StringIO()
    show(text, HOSTILE, file=written)
    assert acts(written.getvalue()) == []
    assert written.getvalue().count("\n") == text.count("\n") + 2


def test_a_plain_text_is_unchanged():
    written = io.StringIO()
    show("höher: 1 < 2\n\t☃ [red]", 3, file=written)
    assert written.getvalue() == "höher: 1 < 2\n\t☃ [red]\n3\n"


@pytest.mark.parametrize("place", ["text", "cell", "title", "say"])
def test_a_console_shows_texts_as_they_are(place: str):
    written = io.StringIO()
    console = make_console(file=written, width=300)
    if place == "say":
        Progress(console).say(HOSTILE)
    elif place == "text":
        console.print(HOSTILE)
    else:
        table = Table("column", title=HOSTILE if place == "title" else None)
        table.add_row(HOSTILE if place == "cell" else "")
        console.print(table)
    assert acts(written.getvalue()) == []
    lines = "".join(written.getvalue().split())  # a title is broken into lines
    assert "\\x1b[2J\\x1b]0;title\\x07" in lines
    assert "[link=file:x]gone[/link]" in lines


def test_nothing_else_prints():
    """`print` and consoles that take any text are called in one place; a stop restores the cursor itself."""
    allowed = {"print": {"config/terminal.py", "runs/preemption.py"}, "Console": {"studies/report.py"}}
    found = {
        (node.func.id, path.relative_to(PACKAGE).as_posix())
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in allowed
    }
    assert [pair for pair in found if pair[1] not in allowed[pair[0]]] == []
