"""Text on a terminal: control characters are shown, not sent, because texts of models and names from files hold any.

Everything that commands print goes through `show` or a console of `make_console`. The live bars of rich move the cursor
by themselves.
"""

import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def escaped(text: str) -> str:
    """The text with characters that would act on a terminal, or show nothing, as Python escapes."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def escaped_lines(text: object) -> str:
    """The same for a text of several lines, whose line ends stay."""
    return "\n".join(map(escaped, str(text).split("\n")))


def show(*texts: object, file: TextIO | None = None) -> None:
    """Print texts, each on lines of its own, on standard output or `file`."""
    print(*map(escaped_lines, texts), sep="\n", file=file or sys.stdout, flush=True)


def make_console(**options: Any) -> "Console":
    """A console of rich that takes texts as they are: without control characters, and without markup such as [red]."""
    from rich.console import Console
    from rich.text import Text

    class Escaping(Console):
        def render_str(self, text: str, **styles: Any) -> Text:
            return super().render_str(escaped_lines(text), **styles)

    return Escaping(markup=False, emoji=False, highlight=False, **options)
