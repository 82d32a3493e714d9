"""Chat templates: Jinja programs that ship with models, run in a sandbox, from messages to the text of a prompt.

Rendering matches Hugging Face transformers (block trimming, loop controls, `{% generation %}`, unescaped `tojson`,
`raise_exception`, `strftime_now`) except for the date, because prompts that change daily would change the run. A
template sees `strftime_now` only if a date is given; without one, Llama 3's templates use a fixed date.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rl_llm.tasks.messages import Message


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
    invalid Jinja, an undefined name, or messages that the template refuses.
    """
    values: dict[str, object] = {"messages": list(messages), "tools": None, "documents": None, **special_tokens}
    values["add_generation_prompt"] = begin_response
    if thinking is not None:
        values["enable_thinking"] = thinking
    if date is not None:
        values["strftime_now"] = datetime.datetime.fromisoformat(date).strftime
    try:
        return _compiled(template).render(values)
    except (jinja2.TemplateError, TypeError, ArithmeticError) as error:
        hint = "; give the tokenizer a date" if "strftime_now" in str(error) else ""
        raise TemplateError(f"the chat template cannot be rendered: {error}{hint}") from error


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
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
