"""Chat templates: Jinja programs that ship with models, run in a sandbox, from messages to the text of a prompt.

Rendering matches Hugging Face transformers (block trimming, loop controls, `{% generation %}`, unescaped `tojson`,
`raise_exception`, `strftime_now`) except for the date, because prompts that change daily would change the run. A
template sees `strftime_now` only if a date is given; without one, Llama 3's templates use a fixed date. For the same
reason there is no `random`, no `lipsum`, and no text with addresses of memory.

Templates come with models, and a sandbox bounds neither their time nor their memory. They are rendered in a process of
their own with limits of both.
"""

import atexit
import contextlib
import datetime
import functools
import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rl_llm.tasks.messages import Message

SECONDS = 5.0  # of CPU time for one text; published templates take milliseconds
BYTES = 2**30  # of memory
CHARACTERS = 10**7  # of a text
_ADDRESS = " at 0x"  # in the text of a Python object


class TemplateError(ValueError):
    """A chat template that cannot be rendered."""


def render_chat(
    template: str,
    messages: Sequence[Message],
    special_tokens: Mapping[str, str],
    *,
    thinking: bool | None = None,
    date: str | None = None,
    begin_response: bool = True,
) -> str:
    """Render the text of a conversation. With `begin_response` it ends where the model's turn begins.

    `special_tokens` are those that templates name, such as `bos_token`. `thinking` is `enable_thinking` of Qwen3's
    templates; None leaves it undefined. `date` (YYYY-MM-DD) is the day of `strftime_now`. Raises TemplateError for
    invalid Jinja, an undefined name, messages that the template refuses, and any other error; also beyond the limits.
    """
    values: dict[str, object] = {"messages": list(messages), "tools": None, "documents": None, **special_tokens}
    values["add_generation_prompt"] = begin_response
    if thinking is not None:
        values["enable_thinking"] = thinking
    text, error = _RENDERER.render([SECONDS, template, values, date])
    if error:
        hint = "; give the tokenizer a date" if "strftime_now" in error else ""
        raise TemplateError(f"the chat template cannot be rendered: {error}{hint}")
    return text


class _Renderer:
    """A process that renders templates, started when it is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, request: list[Any]) -> tuple[str, str]:
        """The text of a request to `serve`, and what went wrong (empty if nothing did)."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.close()
                program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
                self._process = subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C is for us
                )
            asked, answers = self._process.stdin, self._process.stdout
            assert asked is not None and answers is not None  # noqa: PT018
            with contextlib.suppress(BrokenPipeError):  # it was killed: then it answers nothing
                asked.write(json.dumps(request).encode() + b"\n")
                asked.flush()
            if answer := answers.readline():
                text, error = json.loads(answer)
                return str(text), str(error)
            ended = self._process.wait()
            slow = f"it takes more than {SECONDS:g} s of CPU time"
            return "", slow if ended == -signal.SIGPROF else f"its process ended: {ended}"

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError), self._process:  # closes its input, so it ends
                self._process = None


_RENDERER = _Renderer()
atexit.register(_RENDERER.close)


def serve() -> None:
    """Render what standard input asks for, a line of JSON each; SIGPROF ends this process when one takes too long."""
    answers = sys.stdout.buffer
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = BYTES if most == resource.RLIM_INFINITY else min(BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        seconds, *request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer = _answer(*request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(answer + b"\n")
        answers.flush()


def _answer(template: str, values: dict[str, Any], date: str | None) -> bytes:
    """Text and error as JSON. An error of the template's own is its message; others end with their names."""
    try:
        said = repr((template, values))
        if date is not None:
            values["strftime_now"] = datetime.datetime.fromisoformat(date).strftime
        text = _compiled(template).render(values)
        if len(text) > CHARACTERS:
            raise TemplateError(f"its text has {len(text):,} characters; expected at most {CHARACTERS:,}")
        if _ADDRESS in text and _ADDRESS not in said:
            raise TemplateError(f"its text names a place in memory: {text[max(0, text.index(_ADDRESS) - 20) :][:50]!r}")
        return json.dumps([text, ""]).encode()
    except (jinja2.TemplateError, TemplateError) as error:
        return json.dumps(["", str(error) or type(error).__name__]).encode()
    except Exception as error:  # whatever a template makes of its values
        return json.dumps(["", f"{error} ({type(error).__name__})"]).encode()


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    del environment.filters["random"], environment.globals["lipsum"]
    return environment.from_string(template)


class _Generation(Extension):
    """`{% generation %}` marks a model's text for the loss; it adds nothing to the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _to_json(value: object, ensure_ascii: bool = False, **options: Any) -> str:
    """Write JSON without Jinja's HTML escapes; `options` go to json.dumps."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
