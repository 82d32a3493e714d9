"""Chat templates: the Jinja programs that models bring along, run in a sandbox, from messages to the text of a prompt.

They are rendered as Hugging Face transformers renders them (block trimming, loop controls, `{% generation %}`, `tojson`
as it is, `raise_exception`, `strftime_now`), but for the date: a prompt that changes from day to day would make another
run of it. A template sees `strftime_now` only where a date was given; those of Llama 3 have a fixed date elsewhere.
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

Message = Mapping[str, str]  # role and content


class TemplateError(ValueError):
    """A chat template that cannot be rendered; the message says why."""


def render(
    template: str,
    messages: Sequence[Message],
    special_tokens: Mapping[str, str],
    *,
    thinking: bool | None = None,
    date: str | None = None,
    begin_response: bool = True,
) -> str:
    """The text of a conversation. With `begin_response` it ends where the model's turn begins.

    special_tokens: `bos_token`, `eos_token` and the like, which templates name. thinking: `enable_thinking`, as the
    templates of Qwen3 know it; None leaves it unsaid. date: YYYY-MM-DD, what `strftime_now` tells. Raises TemplateError
    for a template that is no Jinja, asks for what is not there, or refuses the messages.
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
    """`{% generation %}` around what a model says marks it for the loss, and adds nothing to the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _to_json(value: object, ensure_ascii: bool = False, **options: Any) -> str:
    """Not escaped for HTML, as Jinja's own would be; `options` are those of json.dumps."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
